"""Pictures and measures of what a run learned."""
