"""The processes of a job: device, environment, and which process ends when another one has ended."""
