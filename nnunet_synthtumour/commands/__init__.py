"""One module per subcommand of `synthtumour`: `add_arguments(parser)` and `run(args)`, heavy imports inside `run`."""
