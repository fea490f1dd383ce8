"""Read, name, shard and initialise the weights of a network."""
