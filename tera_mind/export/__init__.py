"""Brain stores and generated volumes in the formats that other software opens."""
