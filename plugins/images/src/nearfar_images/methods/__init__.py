"""Methods of systems that the declarative frame does not cover."""
