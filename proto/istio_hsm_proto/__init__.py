"""Generated stubs of the wire contracts beside them; see the .proto files."""
