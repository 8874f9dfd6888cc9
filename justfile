# The tasks of this repository. `just` is optional: each task is one command, to be typed as it stands here.
# https://just.systems; `just` without a task lists them all.

# List the tasks
default:
    @just --list --unsorted

# Build the server for release: target/release/visionscope
build:
    cargo build --release --locked

# Run the server with SQLite; without configuration it begins with a demo
run *arguments:
    cargo run -- {{arguments}}

# Run a command beside a throwaway PostgreSQL and Redis; the server, unless another one is named
servers *command='cargo run':
    scripts/with-servers {{command}}

# Run all tests, or those that the arguments of `cargo test` choose
test *arguments:
    scripts/test {{arguments}}

# Run one suite, a folder or file of tests/: just suite api
suite name *arguments:
    scripts/test --test {{name}} {{arguments}}

# Kill the server, PostgreSQL and Redis so many times under load
kills count='300':
    CRASH_KILLS={{count}} scripts/test --test crash -- no_acknowledged --nocapture

# Run the tests that need no servers
unit:
    cargo test --lib --test tidy --test docs --test contract --test openapi

# Lint as CI does
lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Format all code
fmt:
    cargo fmt --all

# Build the documentation of the code: target/doc/visionscope_billing
docs:
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items --locked

# Write the generated files anew: openapi/, and the tables in docs/
generated:
    cargo run -- openapi
    UPDATE_DOCS=1 cargo test --test docs

# Check the OpenAPI document against the recommended rules (needs npx)
lint-openapi:
    scripts/lint-openapi

# Generate a TypeScript and a Python client and use them on a server (needs node, python3 and the network)
clients:
    scripts/test-clients

# Test the Python SDK as a wheel, on both databases (needs python3 and the network)
python-sdk *arguments:
    scripts/with-servers scripts/test-python-sdk {{arguments}}

# Measure: some twenty minutes on a machine that does nothing else; writes docs/BENCHMARKS.md
bench *arguments:
    scripts/bench {{arguments}}

# Try whether measuring works: a few minutes, rough, writes nothing
bench-quick:
    scripts/bench --quick

# Check the invariants of the database that is configured
verify *arguments:
    cargo run -- verify {{arguments}}

# Check everything that CI checks, before a change is sent
ci:
    .ci/run
