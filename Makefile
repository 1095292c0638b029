# serverswap: build, test, install.  GNU make; the recipes are POSIX shell.
#
#   make             build the release binary
#   make install     into PREFIX, below DESTDIR if it is given
#   make test        all tests; make check: format, lints and "make house" as well
#   make house       measures the source, and fails where something is too big
#   make test-servers  swaps of real servers under load; installs them (Debian,
#                    as root or by sudo)
#   make test-nginx  Node servers behind nginx and HAProxy, each swapped 60 times: no request may fail
#   make npm         the package for npm, below target/npm, with a program that needs no library;
#                    make deb: the one for Debian, below target/debian, with cargo-deb
#   make test-deploy deploys over a real sshd, and the unit under a real systemd
#   make test-packages  makes both, installs each and swaps with it
#   make faults      breaks everything at every step of a swap, and prints a table:
#                    more than "make test" does
#   make fuzz        FUZZ_SECONDS of fuzzing (120), with cargo-fuzz
#   make simulate    the pure core, several supervisors of it, against a simulated kernel
#                    for SIMULATE seconds (25), and four faults put back: each has to be
#                    found. SEED=7 RUNS=1 repeats a run
#   make bench       figures; those with wrk and start_server (Debian: wrk,
#                    libserver-starter-perl), and beside what test-servers
#                    installs, only where these are installed
#   make soak        random servers, random faults, constant load, for SOAK
#                    seconds (600): SOAK=120 SEED=7 repeats the choices of a run
#   make scale       a thousand addresses, five hundred servers, ten thousand
#                    connections: does it work, and what does it cost
#   make demo        a swap under load, to look at
#   make uninstall   what install has put there; make clean: what was built

PREFIX  = /usr/local
SYSCONFDIR = /etc
DESTDIR =

BINDIR      = $(PREFIX)/bin
MANDIR      = $(PREFIX)/share/man
NODEDIR     = $(PREFIX)/lib/node_modules/serverswap
BASHDIR     = $(PREFIX)/share/bash-completion/completions
ZSHDIR      = $(PREFIX)/share/zsh/site-functions
FISHDIR     = $(PREFIX)/share/fish/vendor_completions.d
UNITDIR     = $(PREFIX)/lib/systemd/system
TMPFILESDIR = $(PREFIX)/lib/tmpfiles.d
LOGROTATEDIR = $(SYSCONFDIR)/logrotate.d

FUZZ_SECONDS = 120
SOAK    = 600
SIMULATE = 25

# What has to be there before something is built: a word for tests/setup.sh.
SETUP   = build

CARGO   = cargo
NODE    = node
INSTALL = install

# Where rustup puts it, if this shell does not look there yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

TARGET  = $(or $(CARGO_TARGET_DIR),target)
BIN     = $(TARGET)/release/serverswap

# Of the package for npm. Another one than this machine's needs its standard library (rustup target add) and a linker.
ARCH    = $(shell uname -m)
TRIPLE  = $(ARCH)-unknown-linux-gnu
STATIC  = $(TARGET)/$(TRIPLE)/release/serverswap

CLIENT  = $(wildcard src/client/node/*.js src/client/node/*.mjs src/client/node/*.json \
            src/client/node/*.ts src/client/node/*.mts)
SCRIPTS = $(wildcard .ci/run tests/*.sh tests/*/*.sh src/install/*/*.sh src/install/completions/*.bash)
NODE_TESTS = $(wildcard tests/node-client/*.test.js tests/node-client/*.test.mjs)

# $(call need,PROGRAM,WHAT TO INSTALL)
need = command -v $(1) >/dev/null 2>&1 || { echo "make: serverswap needs $(2)" >&2; exit 1; }
need_cargo   = $(call need,$(CARGO),cargo and Rust 1.91 or later (rustup))
need_node    = { $(NODE) -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)' 2>/dev/null || \
                 { echo "make: serverswap needs node 18 or later (Debian: nodejs)" >&2; exit 1; }; }
need_deb     = PATH="$$PATH:$(abspath $(TARGET))/cargo-deb/bin"; \
               $(call need,cargo-deb,cargo-deb for this package (cargo install --locked cargo-deb))
need_fmt     = { $(CARGO) fmt --version >/dev/null 2>&1 || \
                 { echo "make: serverswap needs rustfmt to check the format (rustup component add rustfmt)" >&2; exit 1; }; }
need_clippy  = { $(CARGO) clippy --version >/dev/null 2>&1 || \
                 { echo "make: serverswap needs clippy to check the code (rustup component add clippy)" >&2; exit 1; }; }

all:
	@tests/setup.sh $(SETUP)
	@$(need_cargo)
	$(CARGO) build --release --locked

# tests/install.sh installs the release binary.
test: SETUP = test
test: all
	@$(need_node)
	$(CARGO) test --locked
	$(NODE) --test $(NODE_TESTS)
	tests/install.sh

check:
	@tests/setup.sh check
	@$(need_cargo)
	@$(need_fmt)
	@$(need_clippy)
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	mandoc -T lint -W warning man/serverswap.1 man/serverswap.7
	shellcheck $(SCRIPTS)
	$(MAKE) house
	$(MAKE) test

house:
	@$(need_cargo)
	$(CARGO) test --locked --test house

# Most of it is part of "make test"; ONLY='words' that the line of a fault must hold.
faults:
	@tests/setup.sh test
	@$(need_cargo)
	$(CARGO) test --locked --test faults -- --all $(ONLY)

# Below target: a Python environment, npm packages, what has to be compiled. ROWS='words' that the name of a row must
# hold, or `part=kept`; SWAPS=2 makes the rows of kept connections shorter.
test-servers:
	@$(need_cargo)
	tests/servers/install.sh '$(TARGET)/servers'
	$(CARGO) test --locked --test matrix -- $(if $(SWAPS),swaps=$(SWAPS)) $(ROWS)

# Ten minutes. ROUNDS=1 is a third of it; WAY='nginx plain' is one of the four parts; WAY=close shows what server.close()
# and a timer do.
test-nginx: SETUP = nginx
test-nginx: all
	@$(need_node)
	SERVERSWAP='$(BIN)' $(NODE) tests/nginx/run.mjs $(or $(ROUNDS),3) $(WAY)

# What it finds is below target/fuzz; what breaks, below tests/fuzz/artifacts. An input that is worth keeping
# goes to tests/fuzz/corpus, where "make test" replays it.
fuzz:
	@$(need_cargo)
	tests/fuzz/run.sh run '$(TARGET)/fuzz' '$(FUZZ_SECONDS)'

fuzz-build:
	@$(need_cargo)
	tests/fuzz/run.sh build '$(TARGET)/fuzz'

# A bounded part of it is in "make test".
simulate:
	@tests/setup.sh simulate
	@$(need_cargo)
	SIMULATE='$(SIMULATE)' $(CARGO) test --locked --profile simulate --test simulate
	tests/simulate/faults.sh '$(TARGET)/simulate-faults'

bench:
	@$(need_cargo)
	$(CARGO) bench --locked --bench figures

# Its servers are those of test-servers.
soak:
	@$(need_cargo)
	tests/servers/install.sh '$(TARGET)/servers'
	SOAK='$(SOAK)' $(CARGO) test --release --locked --test soak

scale:
	@$(need_cargo)
	@$(need_node)
	$(CARGO) bench --locked --bench scale

demo: SETUP = demo
demo: all
	@$(need_node)
	@SERVERSWAP='$(BIN)' tests/demo.sh

# Builds only what is missing, so that root needs no Rust: make && sudo make install
$(BIN):
	@$(need_cargo)
	$(CARGO) build --release --locked

install: $(BIN)
	$(INSTALL) -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(MANDIR)/man1' '$(DESTDIR)$(MANDIR)/man7' \
	    '$(DESTDIR)$(NODEDIR)' '$(DESTDIR)$(BASHDIR)' '$(DESTDIR)$(ZSHDIR)' '$(DESTDIR)$(FISHDIR)' \
	    '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(TMPFILESDIR)' '$(DESTDIR)$(LOGROTATEDIR)'
	$(INSTALL) -m 755 '$(BIN)' '$(DESTDIR)$(BINDIR)/serverswap'
	$(INSTALL) -m 644 man/serverswap.1 '$(DESTDIR)$(MANDIR)/man1/serverswap.1'
	$(INSTALL) -m 644 man/serverswap.7 '$(DESTDIR)$(MANDIR)/man7/serverswap.7'
	$(INSTALL) -m 644 $(CLIENT) '$(DESTDIR)$(NODEDIR)'
	$(INSTALL) -m 644 src/install/completions/serverswap.bash '$(DESTDIR)$(BASHDIR)/serverswap'
	$(INSTALL) -m 644 src/install/completions/_serverswap '$(DESTDIR)$(ZSHDIR)/_serverswap'
	$(INSTALL) -m 644 src/install/completions/serverswap.fish '$(DESTDIR)$(FISHDIR)/serverswap.fish'
	sed 's|@BINDIR@|$(BINDIR)|g' 'src/install/systemd/serverswap@.service' \
	    >'$(DESTDIR)$(UNITDIR)/serverswap@.service'
	chmod 644 '$(DESTDIR)$(UNITDIR)/serverswap@.service'
	$(INSTALL) -m 644 src/install/tmpfiles.d/serverswap.conf '$(DESTDIR)$(TMPFILESDIR)/serverswap.conf'
	$(INSTALL) -m 644 src/install/logrotate/serverswap '$(DESTDIR)$(LOGROTATEDIR)/serverswap'

# Removes the files of install and the one directory that is ours alone.
uninstall:
	rm -f '$(DESTDIR)$(BINDIR)/serverswap' \
	    '$(DESTDIR)$(MANDIR)/man1/serverswap.1' '$(DESTDIR)$(MANDIR)/man7/serverswap.7' \
	    $(CLIENT:src/client/node/%='$(DESTDIR)$(NODEDIR)/%') \
	    '$(DESTDIR)$(BASHDIR)/serverswap' '$(DESTDIR)$(ZSHDIR)/_serverswap' \
	    '$(DESTDIR)$(FISHDIR)/serverswap.fish' '$(DESTDIR)$(UNITDIR)/serverswap@.service' \
	    '$(DESTDIR)$(TMPFILESDIR)/serverswap.conf' '$(DESTDIR)$(LOGROTATEDIR)/serverswap'
	[ ! -d '$(DESTDIR)$(NODEDIR)' ] || rmdir '$(DESTDIR)$(NODEDIR)'

test-deploy: SETUP = deploy
test-deploy: all
	tests/ssh.sh '$(BIN)'
	tests/systemd.sh '$(BIN)'

# The package for npm: the program is linked so that it runs on every Linux of its architecture.
npm: SETUP = packages
npm:
	@tests/setup.sh $(SETUP)
	@$(need_cargo)
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --locked --target '$(TRIPLE)'
	src/install/npm/pack.sh '$(STATIC)' '$(ARCH)' '$(TARGET)/npm'

deb: all
	@$(need_deb)
	sed 's|@BINDIR@|/usr/bin|g' 'src/install/systemd/serverswap@.service' >'$(TARGET)/release/serverswap@.service'
	PATH="$$PATH:$(abspath $(TARGET))/cargo-deb/bin" $(CARGO) deb --no-build --locked

test-packages: SETUP = packages
test-packages: npm deb
	@$(need_node)
	tests/packages/npm.sh
	tests/packages/deb.sh

clean:
	@$(need_cargo)
	$(CARGO) clean

.PHONY: all test check house faults test-servers test-nginx test-deploy fuzz fuzz-build simulate bench soak scale demo install uninstall \
        npm deb test-packages clean
