"""Pictures of an attention map volume."""
