"""All that knows a grid: MiniGrid's environments behind the simulators' seam. minigrid is imported when one is used."""
