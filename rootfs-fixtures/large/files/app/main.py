"""A web service of the usual kind: a framework, one page, little of its image."""

import os

from flask import Flask

app = Flask(__name__)


@app.route("/")
def page():
    return "hello from a large image\n"


app.run(host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
