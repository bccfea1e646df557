"""The command line: options in, one call into another package, result out."""
