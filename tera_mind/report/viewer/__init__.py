"""The deep-zoom viewer: layers read from stores, a server on loopback, and the page as files (no network)."""
