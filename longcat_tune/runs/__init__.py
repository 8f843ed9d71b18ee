"""The wiring: config to plan to build to run; the only room that knows the others."""
