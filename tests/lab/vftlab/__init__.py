# SPDX-License-Identifier: MIT
"""The lab's own library: builds images, runs jobs in an emulated machine, and drives what runs inside.

`vftlab.build`, `.debian`, `.images`, `.modules`, `.machine` and `.run` belong to the outside;
`vftlab.guest`, `.qmp`, `.vm` and `.devices` run inside the emulated machine. Both sides use the
standard library only, so that the lab depends on nothing that it might be used to test.
"""
