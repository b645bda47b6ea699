"""highway-env: its vehicles, what is measured of them, and who stands in which row of an observation."""
