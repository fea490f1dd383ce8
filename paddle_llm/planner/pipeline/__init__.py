"""Pipeline schedules as orders of operations, and the times at which the operations run. Does not import Paddle."""
