"""`longpo report`: what training runs wrote, as one page to look at and as pictures, several runs beside each other."""
