"""The engines of a verification: PaddleNLP, paddle.inference, transformers and PaddleFormers."""
