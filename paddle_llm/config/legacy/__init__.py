"""Names that earlier PaddleNLP releases and other trainers use: tables, and the translation to fields."""
