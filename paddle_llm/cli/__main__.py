"""`python -m paddle_llm.cli`."""

from paddle_llm.cli.main import main

main()
