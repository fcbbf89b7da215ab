"""A page in the browser: pictures of runs with their routes, their curves, and the data they were trained on."""
