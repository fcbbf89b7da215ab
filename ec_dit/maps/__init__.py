"""What routers do, made visible: figures of the experts that tokens got, maps, and what each expert takes."""
