# Everyday commands; `just` lists them. Each is plain enough to type by hand.

[private]
default:
    @just --list

# A chat server to try, with nothing else needed; prints what to do next.
demo *args:
    cargo run --release -- demo {{args}}

# Run the server with settings.toml.
serve *args:
    cargo run --release -- serve {{args}}

# Everything that must hold before a change goes in.
test *args:
    scripts/test {{args}}

# The Rust tests only; `just t order` runs those whose name has "order".
t *args:
    MONGOD="$(scripts/get-mongod)" cargo test --workspace {{args}}

# Format, then lint.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings

# settings.toml anew, after a change to a setting.
settings:
    cargo run --quiet -- settings > settings.toml

# docs/openapi.json anew, after a change to a route.
openapi:
    UPDATE_DOCS=1 cargo test --test it documents::docs_openapi

# Load on the real server with faults at random times; `just faults --rounds 100`.
faults *args:
    scripts/faults {{args}}

# Presenters on links that break all the time, and a restart in the middle; `just chaos --kill` for SIGKILL.
chaos *args:
    scripts/chaos {{args}}

# This server beside a bare one and nchan.
bench *args:
    scripts/bench {{args}}

# Every parser and running servers against malformed input.
fuzz *args:
    scripts/fuzz {{args}}

# curl → server → room server → WebSocket → MongoDB, as separate processes.
end-to-end:
    scripts/end-to-end

# deploy/nginx.conf before a real server.
gateway:
    scripts/gateway

# The rest of deploy/: the unit, the image, the StatefulSet, the alerts.
check-deploy:
    scripts/check-deploy

# The demo page in a headless browser; leaves a screenshot in target/demo.png.
browser:
    scripts/test --only browser

# Presenters with Python's websockets, Node's ws and a browser.
clients:
    scripts/test --only clients

# The documentation of both crates.
doc:
    cargo doc --no-deps --workspace --open
