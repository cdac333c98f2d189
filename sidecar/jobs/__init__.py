"""What runs beside requests: in every process the ticker, in one of all processes (`leader`) the jobs of `build`."""
