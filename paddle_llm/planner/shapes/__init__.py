"""The weights that each rank of a job holds: names, shapes, which are trained, and which rank of a sharding group owns them."""
