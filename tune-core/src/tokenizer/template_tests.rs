use super::*;

fn conversation(texts: &[&str]) -> Conversation {
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
        .collect::<Vec<_>>()
        .into()
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
}

#[test]
fn the_day_can_be_fixed() {
    let template = template("{{ strftime_now('%d %b %Y') }}");
    assert!(template.uses_date());
    assert_eq!(template.at(0).render(&Conversation::default(), false).unwrap(), "01 Jan 1970");
}

fn object(value: serde_json::Value) -> Object {
    serde_json::from_value(value).unwrap()
}

#[test]
fn tools_documents_and_arguments_reach_the_template() {
    let source = "{{ tools }} {{ documents }} {{ enable_thinking }} {{ bos_token }}";
    let template = ChatTemplate::new(source, [("bos_token".to_owned(), "<s>".to_owned())].into()).unwrap();
    let mut conversation = conversation(&["a"]);
    assert_eq!(template.render(&conversation, false).unwrap(), "None None  <s>");
    conversation.tools = Some(vec![object(serde_json::json!({"name": "b", "a": null}))]);
    conversation.documents = Some(vec![object(serde_json::json!({"title": "c"}))]);
    conversation.arguments = object(serde_json::json!({"enable_thinking": false, "bos_token": "<b>"}));
    let expected = "[{'name': 'b', 'a': None}] [{'title': 'c'}] False <b>";
    assert_eq!(template.render(&conversation, false).unwrap(), expected);
    conversation.arguments = object(serde_json::json!({"messages": []}));
    assert!(template.render(&conversation, false).unwrap_err().to_string().contains("`messages`"));
}
