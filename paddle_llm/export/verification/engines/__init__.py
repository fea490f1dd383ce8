"""Who answers the questions of a verification: our loader, paddle.inference, transformers, paddleformers."""
