"""Many runs side by side: found by their folders, grouped over seeds, ranked, written as tables and as one page.

Folders -> `records` (runs) -> `groups` (a frame of runs and one of groups) -> `tables` (text) and `page` (HTML with
`figures`).
"""
