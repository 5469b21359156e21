"""The cases. Each module has a NAME, what it NEEDS of an endpoint, and `run(context)`, which raises when it fails."""
