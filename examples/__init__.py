"""Small runs to repeat; packaged, so that `meterline demo` works from a wheel."""
