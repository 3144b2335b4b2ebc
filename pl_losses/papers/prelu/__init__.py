"""He, Zhang, Ren, Sun 2015, Delving Deep into Rectifiers: PReLU and rectifier-aware initialisation."""
