"""Modules and functions in plain torch; they import no other package of pefttools."""
