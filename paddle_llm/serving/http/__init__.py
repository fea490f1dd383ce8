"""The HTTP interface: the endpoints of OpenAI's API."""
