"""Memory of each rank by component, as a maximum over the phases of a step."""
