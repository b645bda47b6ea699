"""Programs of RASP, compiled to attention and look-up layers of our own making: what each network computes is known.

`language` says what a program is made of, `listing` holds the programs, `compiler` writes the weights into `network`,
`circuit` the equations of its units beside them, and `opening` puts all of it together.
"""
