"""ZeRO: sharding stages 2 and 3."""
