"""The command line: one thin file a verb, each a wrapper round one public function."""
