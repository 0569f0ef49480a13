# Short names for the commands of the README.

serve:
	sh .ci/setup && .venv/bin/python -m trioswitch serve

chat:
	sh .ci/setup && .venv/bin/python examples/chat/chat.py

test:
	sh tests/run

.PHONY: serve chat test
