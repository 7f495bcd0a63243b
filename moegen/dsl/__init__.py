"""The DSL: how routers and experts are declared and traced."""
