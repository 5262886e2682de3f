"""The mailbox between a network card's driver and its virtual functions: tables, decoding, lives of VFs.

Pure: events in, values out. A driver is one table here and one number in `drivers`.
"""
