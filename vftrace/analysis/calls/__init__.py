"""From records of system calls to what took each step of a blackout."""
