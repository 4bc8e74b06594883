use super::*;

#[test]
fn generation_tags_keep_their_white_space_control() {
    let (program, found) =
        without_generation_tags("a{%- generation -%} {{ x }} {%endgeneration%}{% if generation %}{% endif %}{%");
    assert!(found);
    assert_eq!(program, "a{%- filter generation__ -%} {{ x }} {% endfilter %}{% if generation %}{% endif %}{%");
}

fn conversation(texts: &[&str]) -> Vec<Message> {
    let roles = ["user", "assistant"];
    texts
        .iter()
        .zip(roles.iter().cycle())
        .map(|(text, role)| {
            let mut message = Message::new();
            message.insert("role".into(), (*role).into());
            message.insert("content".into(), (*text).into());
            message
        })
        .collect()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, BTreeMap::new()).unwrap()
}

#[test]
fn marks_are_found_and_leave_no_trace() {
    let source = "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} {% else %}A: \
                  {% generation %}{{ m.content }}.{% endgeneration %} {% endif %}{% endfor %}";
    let template = template(source);
    let messages = conversation(&["é", "ü", "b", ""]);
    let rendered = template.render_marked(&messages).unwrap();
    assert_eq!(rendered.text, "Q: é A: ü. Q: b A: . ");
    assert_eq!(rendered.text, template.render(&messages, false).unwrap());
    let marked: Vec<&str> = rendered.generated.iter().map(|r| &rendered.text[r.clone()]).collect();
    assert_eq!(marked, ["ü.", "."]);

    let hostile = conversation(&["\u{fdd0}", "b"]);
    assert!(template.render_marked(&hostile).unwrap_err().to_string().contains("U+FDD0"));
}

#[test]
fn a_template_can_refuse_and_can_be_wrong() {
    let messages = conversation(&["a"]);
    let message = |source: &str| template(source).render(&messages, false).unwrap_err().to_string();
    assert_eq!(
        message("\n{{ raise_exception('No!') }}"),
        "the chat template refuses this conversation: No! (line 2 of the template)"
    );
    assert!(message("{{ messages[0].content.nope() }}").contains("nope"));
    assert!(message("{{ nope.nope }}").contains("undefined"));
    assert!(message("{{ strftime_now('%Q') }}").contains("%Q"));
    // Neither a loop without end nor deep nesting takes the program down.
    assert!(!message("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").is_empty());
    assert!(!message("{{ range(100000000) }}").is_empty());
}

#[test]
fn the_day_can_be_fixed() {
    let template = template("{{ strftime_now('%d %b %Y') }}");
    assert!(template.uses_date());
    assert_eq!(template.at(0).render(&[], false).unwrap(), "01 Jan 1970");
}
