"""What every other package may import: no Paddle, no PaddleNLP."""
