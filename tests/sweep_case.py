"""A small sweep, and a stand-in for tera-mind that makes files in no time."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = "sweep.yaml"
SWEEP = {
    "name": "case",
    "recipe": "recipe.yaml",
    "overrides": {"trainer.max_steps": 3},
    "values": {"size": "small"},
    "list": [{"sections": 1, "zg": 1}, {"sections": 2, "zg": 4}],
    "grid": {"steps": [4, 5]},
    "seeds": [0, 1],
    "stages": {
        "brain": {"command": "simulate --size {size} --make {here}/brain", "makes": "brain"},
        "shards": {"command": "shards {brain} --zg {zg} --make {here}/s", "makes": "s"},
        "fit": {
            "command": "fit {recipe} --data.shards {shards} --seed_everything {seed} --make {here}/last.ckpt",
            "makes": "last.ckpt",
            "sbatch": ["--gpus-per-task=1"],
        },
        "paint": {"command": "paint {fit} --steps {steps} --make {here}/metrics.json", "makes": "metrics.json"},
    },
    "table": {"from": "paint", "setting": "sections", "metrics": ["psnr/DAPI", "frechet/DAPI"]},
}

#: called as a launcher (`prefix`) with: python -m tera_mind.cli.main WORDS...
_STAND_IN = """\
#!/bin/sh
shift 3
echo "$*" >> "$FOLDER/calls"
if [ -e "$FOLDER/fail" ]; then case "$*" in *"$(cat "$FOLDER/fail")"*) echo broken; exit 3;; esac; fi
if [ -e "$FOLDER/stop" ] && [ "$1" = "$(cat "$FOLDER/stop")" ]; then exit 75; fi
if [ -e "$FOLDER/slow" ]; then
    trap 'kill $!; exit 75' TERM USR1
    sleep "$(cat "$FOLDER/slow")" &
    wait
fi
if [ -e "$FOLDER/meet" ]; then
    for _ in $(seq 200); do [ "$(grep -c "^$(cat "$FOLDER/meet")" "$FOLDER/calls")" -ge 2 ] && break; sleep 0.05; done
    [ "$(grep -c "^$(cat "$FOLDER/meet")" "$FOLDER/calls")" -ge 2 ] || exit 4
fi
while [ "$1" != --make ]; do shift; done
echo made > "$2"
"""


def write_sweep(folder: Path, **changes) -> Path:
    """Write the sweep and its recipe; None leaves a key empty."""
    if not (folder / "recipe.yaml").exists():
        (folder / "recipe.yaml").write_text("trainer: {max_steps: 1}\n")
    (folder / FILE).write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
    return folder / FILE


def stand_in(folder: Path) -> str:
    """Path of the stand-in; the files fail, stop, slow and meet of the folder say how it behaves."""
    path = folder / "stand-in"
    path.write_text(_STAND_IN.replace("$FOLDER", str(folder)))
    path.chmod(0o755)
    return str(path)


def calls(folder: Path) -> list[str]:
    """The words of every call so far."""
    file = folder / "calls"
    return file.read_text().splitlines() if file.exists() else []
