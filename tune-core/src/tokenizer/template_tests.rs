use super::*;

#[test]
fn generation_tags_keep_their_white_space_control() {
    let (program, found) = without_generation_tags(
        "a{%- generation -%} {{ x }} {%endgeneration%}{% if generation %}{% endif %}{%",
    );
    assert!(found);
    assert_eq!(
        program,
        "a{%- filter generation__ -%} {{ x }} {% endfilter %}{% if generation %}{% endif %}{%"
    );
}
