"""What it will cost: FLOPs and peaks. Imports no paddle."""
