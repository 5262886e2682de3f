"""Derives advice from finished migrations: one function for each rule, none without evidence."""
