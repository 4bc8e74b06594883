//! A template that comes with a model cannot hang the program, fill its memory or overflow its stack.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tune_jinja::{Kind, Names, Template, Value};

/// Counts what is in use.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a template with this source does, on a small stack.
fn attack(source: &str, limited: bool) {
    let owned = source.to_owned();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let start = Instant::now();
    let run = move || {
        let texts: Vec<Value> = (0..100).map(|_| Value::from("some words\n")).collect();
        let values = [("texts", Value::list(texts).unwrap()), ("s", Value::from("x"))];
        Template::new(&owned).and_then(|template| template.render(&Names::new(&values)))
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap();
    let result = thread.join().unwrap();
    let took = start.elapsed();
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before) >> 20;
    let shown: String = source.chars().take(100).collect();
    if limited {
        let error = result.expect_err(&shown);
        assert_eq!(error.kind(), Kind::Limit, "{shown}: {error}");
        assert!(error.message().len() > 20, "{error}");
    }
    // Ten times what it takes alone.
    assert!(took < Duration::from_secs(30), "{shown} took {took:?}");
    assert!(peak < 512, "{shown} took {peak} MiB");
}

#[test]
fn no_template_takes_the_program_down() {
    // Loops without end.
    let r = "range(100000)";
    attack(
        &format!(
            "{{% for a in {r} %}}{{% for b in {r} %}}{{% for c in {r} %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}"
        ),
        true,
    );
    attack(&format!("{{% for a in {r} %}}{{% for b in {r} %}}x{{% endfor %}}{{% endfor %}}"), true);
    attack(
        &format!("{{% set l = {r} | list %}}{{% for a in {r} %}}{{% set b = l | sort | join %}}{{% endfor %}}"),
        true,
    );
    attack(
        &format!("{{% set l = {r} | list %}}{{% for a in {r} %}}{{% if -1 in l %}}{{% endif %}}{{% endfor %}}"),
        true,
    );
    attack(
        &format!(
            "{{% set l = {r} | list %}}{{% for a in {r} %}}{{% set b = l | map('string') | list %}}{{% endfor %}}"
        ),
        true,
    );
    attack(
        &format!("{{% set t = 'x' * 1000000 %}}{{% for a in {r} %}}{{% if 'y' in t %}}{{% endif %}}{{% endfor %}}"),
        true,
    );
    attack(&format!("{{% set t = 'x' * 1000000 %}}{{% for a in {r} %}}{{% set b = t | length %}}{{% endfor %}}"), true);
    attack(&format!("{{% set t = 'x' * 1000000 %}}{{% for a in {r} %}}{{% set b = t.upper() %}}{{% endfor %}}"), true);
    attack(
        &format!(
            "{{% set t = 'x' * 1000000 %}}{{% set u = 'x' * 999999 ~ 'y' %}}{{% for a in {r} %}}{{% set b = t == u %}}{{% endfor %}}"
        ),
        true,
    );
    attack(
        &format!(
            "{{% set ns = namespace(i=2 ** 200000) %}}{{% for a in {r} %}}{{% set b = ns.i * ns.i %}}{{% endfor %}}"
        ),
        true,
    );
    attack(
        &format!("{{% set ns = namespace(i=3) %}}{{% for a in {r} %}}{{% set ns.i = ns.i * ns.i %}}{{% endfor %}}"),
        true,
    );

    // Memory.
    attack("{{ 'x' * 10 ** 9 }}", true);
    attack("{{ 10 ** 18 * 'x' }}", true);
    attack("{{ [1] * 10 ** 9 }}", true);
    attack("{{ 'x'.center(10 ** 9) }}", true);
    attack("{{ 'x'.ljust(10 ** 12) }}", true);
    attack("{{ 'x'.zfill(10 ** 9) }}", true);
    attack("{{ 'x' | center(10 ** 9) }}", true);
    attack("{{ '%1000000000d' % 1 }}", true);
    attack("{{ '%.1000000000f' % 1 }}", true);
    attack("{{ '%*d' % (10 ** 9, 1) }}", true);
    attack("{{ '{:1000000000}'.format(1) }}", true);
    attack("{{ '\t'.expandtabs(10 ** 9) }}", true);
    attack("{{ range(10 ** 9) | list }}", true);
    attack("{{ 2 ** (10 ** 9) }}", true);
    attack("{{ texts | tojson(indent=10 ** 9) }}", true);
    attack("{{ texts | join('x' * 10 ** 7) | length }}{{ (texts * 1000) | join('x' * 10 ** 5) }}", true);
    attack("{{ (texts | join) | indent(1000000) }}", true);
    attack("{{ ('x' * 10 ** 6).replace('x', 'y' * 10 ** 6) }}", true);
    attack("{{ ('x' * 10 ** 6) | replace('', 'y' * 10 ** 4) }}", true);
    attack("{{ ('x' * 10 ** 7) | list | length }}", true);
    attack("{{ ('x ' * 10 ** 7).split() | length }}", true);
    attack("{{ [1] | batch(10 ** 9, 0) | list }}", true);
    attack("{{ [1] | slice(10 ** 9) | list }}", true);
    attack("{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", true);
    attack("{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", true);
    attack("{% set ns = namespace(l=[1]) %}{% for a in range(100) %}{% set ns.l = ns.l + ns.l %}{% endfor %}", true);
    attack(
        "{% set ns = namespace(l=[]) %}{% for a in range(1000) %}{% set ns.l = ns.l + ['x' * 10 ** 6] %}{% endfor %}",
        true,
    );
    attack("{% for a in range(1000) %}{{ 'x' * 10 ** 6 }}{% endfor %}", true);
    attack("{% macro m() %}{% for a in range(1000) %}{{ 'x' * 10 ** 6 }}{% endfor %}{% endmacro %}{{ m() }}", true);
    attack(
        &format!(
            "{{% set ns = namespace(d={{}}) %}}{{% for a in {r} %}}{{% set ns.d = dict(ns.d, **{{a ~ '': a}}) %}}{{% endfor %}}"
        ),
        true,
    );

    // Values that hold each other.
    attack("{% set ns = namespace(l=[]) %}{% for a in range(34037) %}{% set ns.l = [ns.l] %}{% endfor %}", true);
    attack("{% set ns = namespace(l=()) %}{% for a in range(34037) %}{% set ns.l = (ns.l,) %}{% endfor %}", true);
    attack("{% set ns = namespace(l={}) %}{% for a in range(34037) %}{% set ns.l = {'a': ns.l} %}{% endfor %}", true);
    attack(
        "{% set ns = namespace(n=none) %}{% for a in range(90000) %}{% set m = namespace(n=ns.n) %}{% set ns.n = m %}{% endfor %}",
        false,
    );
    attack(
        "{% set ns = namespace(n=none) %}{% for a in range(90000) %}{% set m = namespace() %}{% set l = [m] %}{% set m.n = ns.n %}{% set ns.n = l %}{% endfor %}",
        false,
    );
    attack("{% set ns = namespace() %}{% set ns.n = [ns] %}{{ ns }}", true);
    attack(
        "{% set ns = namespace(l=[1]) %}{% for a in range(120) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        true,
    );
    attack(
        "{% set ns = namespace(l=[1]) %}{% for a in range(120) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}",
        true,
    );
    attack(
        "{% set ns = namespace(l=[1], m=[1]) %}{% for a in range(120) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}{{ ns.l < ns.m }}",
        true,
    );
    attack(
        "{% set ns = namespace(l=(1,)) %}{% for a in range(120) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ {ns.l: 1} }}",
        true,
    );
    attack(
        "{% set ns = namespace(l=[1]) %}{% for a in range(120) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | pprint }}",
        true,
    );
    attack(
        "{% set ns = namespace(f=s.upper) %}{% for a in range(90000) %}{% set ns.f = cycler(ns.f) %}{% endfor %}",
        true,
    );
    attack("{% set ns = namespace(f='') %}{% for a in range(90000) %}{% set ns.f = joiner(ns.f) %}{% endfor %}", true);
    attack(
        "{% set ns = namespace(f=[]) %}{% for a in range(90000) %}{% set ns.f = ([ns.f] | map('list')) %}{% endfor %}",
        false,
    );

    // Calls.
    attack("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", true);
    attack("{% macro m(a) %}{{ m(a=[1, m(a)]) }}{% endmacro %}{{ m(1) }}", true);
    attack("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}", true);
    attack("{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}", true);
    attack("{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", true);
    attack("{% block a %}{{ self.a() }}{% endblock %}", true);
    attack("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}", true);

    // Text that is nested.
    for n in [50_000, 19_000] {
        for (open, close) in [("(", ")"), ("[", "]"), ("{1:", "}"), ("x[", "]"), ("f(", ")"), ("x|d(", ")")] {
            attack(&format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n)), true);
            attack(&format!("{{{{ {}", open.repeat(n)), false);
        }
        for prefix in ["not ", "-", "+ ", "1 if 1 else "] {
            attack(&format!("{{{{ {}1 }}}}", prefix.repeat(n)), true);
        }
        for operator in ["+", "-", "*", "~", "and", "or", "<", "in", "//", "%", "**"] {
            attack(&format!("{{{{ 1{} }}}}", format!(" {operator} 1").repeat(n)), false);
        }
        for postfix in [".a", "[0]", "()", "|string", " is defined", " if 1", "|d(1)"] {
            attack(&format!("{{{{ x{} }}}}", postfix.repeat(n)), false);
        }
        attack(&"{% if 1 %}".repeat(n), true);
        attack(&format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(n)), false);
        attack(&"{% for a in s %}".repeat(n), true);
        attack(&"{% macro m() %}".repeat(n), true);
        attack(&"{% set x %}".repeat(n), true);
        attack(&"{% with %}".repeat(n), true);
        attack(&"{% generation %}".repeat(n), true);
        attack(&format!("{{% set {}a{} = 1 %}}", "(".repeat(n), ")".repeat(n)), true);
        attack(&format!("{{{{ '{}'.format(1) }}}}", "{:".repeat(n)), false);
    }
    attack(
        &format!("{{% for a in s %}}{}{{% endfor %}}", "{% for a in s %}".repeat(90) + &"{% endfor %}".repeat(90)),
        false,
    );
    attack(&format!("{{{{ {}1{} }}}}", "(".repeat(45), ")".repeat(45)), false);
    attack(
        &format!(
            "{{% macro m(n) %}}{{% if n %}}{{{{ {}m(n - 1){} }}}}{{% endif %}}{{% endmacro %}}{{{{ m(10000) }}}}",
            "[".repeat(40),
            "]".repeat(40)
        ),
        true,
    );
    attack(&format!("{}{}", "{{ s", " | upper".repeat(100_000) + " }}"), false);
}
