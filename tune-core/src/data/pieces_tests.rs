use super::*;
use crate::data::IGNORE;
use crate::data::encoder::{Encoded, Encoder};
use crate::tokenizer::testing::{byte_level, sentence_piece};
use crate::tokenizer::{Conversation, Form};

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("../../../tests/chat_templates/", $name, ".jinja"))
    };
}

fn message(role: &str, text: &str) -> Message {
    crate::data::content::message(role, text, Form::Text)
}

fn chat(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, text)| message(role, text)).collect()
}

const ONE: [(&str, &str); 2] = [("user", "q"), ("assistant", "  a")];
const TWO: [(&str, &str); 4] = [("user", "q"), ("assistant", "  a"), ("user", "r"), ("assistant", "b")];

impl Sink for Vec<Piece> {
    fn push(&mut self, piece: Piece) -> Result<()> {
        Vec::push(self, piece);
        Ok(())
    }

    fn is_full(&self) -> bool {
        false
    }
}

fn cut(tokenizer: &Tokenizer, messages: &[Message], masking: Masking) -> Result<(Vec<Piece>, Closing)> {
    let mut pieces = Vec::new();
    let chat = Chat::from(messages.to_vec());
    let closing = of_conversation(tokenizer.chat_template().unwrap(), tokenizer, &chat, masking, &mut pieces)?.last;
    Ok((pieces, closing))
}

fn encode(tokenizer: &Tokenizer, pieces: &[Piece], max_seq_len: Option<usize>) -> Encoded {
    let mut encoder = Encoder::new(tokenizer, max_seq_len);
    pieces.iter().for_each(|piece| encoder.push(piece.clone()).unwrap());
    encoder.finish("x".into()).unwrap()
}

/// The pieces as text, with brackets around the trained ones.
fn shown(tokenizer: &Tokenizer, messages: &[Message], masking: Masking) -> Result<(String, Closing)> {
    let (pieces, closing) = cut(tokenizer, messages, masking)?;
    let text = pieces
        .iter()
        .map(|p| match (&p.content, p.trained) {
            (Content::Text(text), true) => format!("[{text}]"),
            (Content::Text(text), false) => text.clone(),
            (Content::Token(id), _) => format!("<{id}>"),
        })
        .collect::<Vec<_>>()
        .join("|");
    Ok((text, closing))
}

#[test]
fn an_answer_ends_with_its_stop_token() {
    let tokenizer = byte_level(Some(template!("chatml")));
    let prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    for (messages, masking, expected) in [
        (chat(&ONE), Masking::Assistant, format!("{prompt}|[  a<|im_end|>]|\n")),
        (chat(&ONE), Masking::Last, format!("{prompt}|[  a<|im_end|>]|\n")),
        (chat(&ONE), Masking::All, format!("[{prompt}]|[  a<|im_end|>]|[\n]")),
        (
            chat(&TWO),
            Masking::Assistant,
            format!(
                "{prompt}|[  a<|im_end|>]|\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n|[b<|im_end|>]|\n"
            ),
        ),
        (
            chat(&TWO),
            Masking::Last,
            format!("{prompt}  a<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n|[b<|im_end|>]|\n"),
        ),
    ] {
        let got = shown(&tokenizer, &messages, masking).unwrap();
        assert_eq!(got, (expected, Closing::Stop));
    }
}

#[test]
fn marks_and_prefixes_agree() {
    let (marked, plain) = (template!("chatml_generation"), template!("chatml"));
    let (marked, plain) = (byte_level(Some(marked)), byte_level(Some(plain)));
    for messages in [chat(&ONE), chat(&TWO)] {
        for masking in [Masking::All, Masking::Assistant, Masking::Last] {
            assert_eq!(shown(&marked, &messages, masking).unwrap(), shown(&plain, &messages, masking).unwrap());
        }
    }
}

#[test]
fn marks_without_the_stop_token_are_noticed() {
    let source = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                  {% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}";
    let got = shown(&byte_level(Some(source)), &chat(&ONE), Masking::Assistant).unwrap();
    assert_eq!(got, ("user: q<|im_end|>assistant: |[  a]|<|im_end|>".to_owned(), Closing::Nothing));
    let unmarked = chat(&[("user", "q"), ("assistant", "")]);
    let error = shown(&byte_level(Some(source)), &unmarked, Masking::Assistant).unwrap_err();
    assert!(error.to_string().contains("marks leave no token"), "{error}");
}

#[test]
fn a_conversations_own_end_is_no_obstacle() {
    // Phi-3 closes the conversation with the end-of-text token, which no longer conversation has there.
    let tokenizer = byte_level(Some(&template!("phi3").replace("eos_token", "'</s>'")));
    let (text, closing) = shown(&tokenizer, &chat(&TWO), Masking::Assistant).unwrap();
    assert_eq!(
        text,
        "<|user|>\nq<|end|>\n<|assistant|>\n|[  a<|end|>]|\n<|user|>\nr<|end|>\n<|assistant|>\n|[b<|end|>]|\n</s>"
    );
    assert_eq!(closing, Closing::Stop);
}

#[test]
fn what_closes_the_answer_is_told() {
    let close = |source: &str| shown(&byte_level(Some(source)), &chat(&ONE), Masking::Assistant).unwrap();
    let line = "{% for m in messages %}{{ m.role }}: {{ m.content }}CLOSE\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    for (end, trained, closing) in [
        ("<|im_end|>", "  a<|im_end|>", Closing::Stop),
        (" <|im_end|>", "  a <|im_end|>", Closing::Stop),
        // The template's own end of turn.
        ("<|end|>", "  a<|end|>", Closing::Stop),
        ("", "  a", Closing::Nothing),
    ] {
        let (text, got) = close(&line.replace("CLOSE", end));
        assert!(text.contains(&format!("|[{trained}]|")), "{text}");
        assert_eq!(got, closing);
    }
    // What also begins turns is no sign that one ends.
    let (_, closing) = close(
        &line
            .replace("CLOSE", "<|end|>")
            .replace("{{ m.role }}", "<|end|>{{ m.role }}")
            .replace("}assistant", "}<|end|>assistant"),
    );
    assert_eq!(closing, Closing::Other(byte_level(None).token_id("<|end|>").unwrap()));
}

#[test]
fn an_answer_that_ends_otherwise_where_more_follows_is_refused() {
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last or m.role == 'user' %}<|im_end|>{% \
                  endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let tokenizer = byte_level(Some(source));
    let error = shown(&tokenizer, &chat(&TWO), Masking::Assistant).unwrap_err().to_string();
    assert!(error.contains("the conversation up to message 2") && error.contains("masking_strategy: last"), "{error}");
    assert_eq!(shown(&tokenizer, &chat(&TWO), Masking::Last).unwrap().1, Closing::Stop);
}

#[test]
fn templates_that_rewrite_the_answer() {
    // Gemma and Llama trim, Mistral puts a space in front.
    let gemma = template!("gemma").replace("<end_of_turn>", "<|im_end|>");
    let (text, _) = shown(&byte_level(Some(&gemma)), &chat(&ONE), Masking::Assistant).unwrap();
    assert!(text.ends_with("<start_of_turn>model\n|[a<|im_end|>]|\n"), "{text}");
    let (text, _) = shown(&sentence_piece(Some(template!("mistral"))), &chat(&TWO), Masking::Assistant).unwrap();
    assert_eq!(text, "<s>[INST] q[/INST]|[ a</s>]|[INST] r[/INST]|[ b</s>]|");
    let upper = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let (text, closing) = shown(&byte_level(Some(upper)), &chat(&ONE), Masking::Assistant).unwrap();
    assert_eq!(text, "user: Q<|im_end|>assistant: |[  A<|im_end|>]|");
    assert_eq!(closing, Closing::Stop);
}

#[test]
fn a_template_that_rewrites_history_is_refused_with_the_reason() {
    let tokenizer = byte_level(Some(template!("qwen3")));
    let error = shown(&tokenizer, &chat(&TWO), Masking::Assistant).unwrap_err().to_string();
    for part in [
        "the conversation up to message 2 is not how the whole conversation begins",
        "<think>",
        "masking_strategy: last",
        "{% generation %}",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let (text, _) = shown(&tokenizer, &chat(&TWO), Masking::Last).unwrap();
    assert!(text.ends_with("<|im_start|>assistant\n|[<think>\n\n</think>\n\nb<|im_end|>]|\n"), "{text}");

    // Without a header the model would never be asked to answer.
    let mute = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}";
    let error = shown(&byte_level(Some(mute)), &chat(&ONE), Masking::Assistant).unwrap_err().to_string();
    assert!(error.contains(r#"the prompt that the model answers with message 2"#), "{error}");
    assert!(error.contains(r#"has "A: ", and the whole has "assistant:   a"#), "{error}");
}

#[test]
fn nothing_to_learn_is_an_error() {
    let tokenizer = byte_level(Some(template!("chatml")));
    let messages = chat(&[("user", "q")]);
    assert!(shown(&tokenizer, &messages, Masking::Last).is_err());
    let all = shown(&tokenizer, &messages, Masking::All).unwrap();
    assert_eq!(all.0, "[<|im_start|>user\nq<|im_end|>\n]");
}

#[test]
fn pieces_are_tokenized_apart_and_targets_are_shifted() {
    let tokenizer = byte_level(Some(template!("chatml")));
    let template = tokenizer.chat_template().unwrap();
    let messages = chat(&ONE);
    let (pieces, _) = cut(&tokenizer, &messages, Masking::Assistant).unwrap();
    let encoded = encode(&tokenizer, &pieces, None);
    let sample = encoded.sample;
    assert_eq!(encoded.cut, 0);
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    // The tokenizer would like to join the header's newline with the answer's first space.
    let newline_and_space = id("\u{10a}\u{120}");
    let text = template.render(&Conversation::new(messages), false).unwrap();
    assert!(tokenizer.encode(&text).unwrap().contains(&newline_and_space));
    assert!(!sample.input_ids.contains(&newline_and_space));

    let (n, answer) = (sample.input_ids.len(), [id("\u{120}\u{120}"), id("a"), id("<|im_end|>")]);
    assert_eq!(sample.input_ids[n - 4..n - 1], answer);
    assert_eq!(sample.targets[n - 5..n - 2], answer);
    assert_eq!(sample.targets[n - 2..], [IGNORE; 2]);
    assert!(sample.targets[..n - 5].iter().all(|&t| t == IGNORE));

    // Cut behind the answer's second token: what it would predict is gone with it.
    let cut = encode(&tokenizer, &pieces, Some(n - 2));
    assert_eq!((cut.cut, cut.sample.input_ids.len()), (2, n - 2));
    assert_eq!(cut.sample.targets[n - 5..], [answer[0], answer[1], IGNORE]);
}

#[test]
fn only_a_texts_beginning_gets_sentence_pieces_space() {
    let tokenizer = sentence_piece(None);
    let bos = tokenizer.bos().unwrap();
    let pieces = [Piece::token(bos, false), Piece::text("ab", false), Piece::text("cd", true)];
    let sample = encode(&tokenizer, &pieces, None).sample;
    let tokens: Vec<String> = sample.input_ids.iter().filter_map(|&id| tokenizer.token(id)).collect();
    assert_eq!(tokens, ["<s>", "\u{2581}", "a", "b", "c", "d"]);
    assert_eq!(tokens, tokenizer_tokens(&tokenizer, "abcd"), "as the tokenizer has the whole text");
}

/// What stands behind an end of text, as an earlier exchange has it, is tokenized as in the text that has it written out.
#[test]
fn what_follows_a_token_is_tokenized_as_behind_it() {
    let tokenizer = sentence_piece(None);
    let (bos, eos) = (tokenizer.bos().unwrap(), tokenizer.eos().unwrap());
    let text = |text: &str, trained| Piece::text(text, trained);
    let end = || Piece::token(eos, true);
    let pieces = [
        Piece::token(bos, false),
        text("ab", false),
        text("cd", true),
        end(),
        text("ef", false),
        text("gh", true),
        end(),
    ];
    let sample = encode(&tokenizer, &pieces, None).sample;
    let tokens: Vec<String> = sample.input_ids.iter().filter_map(|&id| tokenizer.token(id)).collect();
    assert_eq!(tokens.concat(), "<s>\u{2581}abcd</s>\u{2581}efgh</s>");
    assert_eq!(sample.input_ids[..sample.input_ids.len() - 1], tokenizer.encode("<s>abcd</s>efgh").unwrap());
    let trained: Vec<String> = sample.targets.iter().filter_map(|&id| tokenizer.token(id)).collect();
    assert_eq!(trained, ["c", "d", "</s>", "g", "h", "</s>"]);
}

fn tokenizer_tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text).unwrap();
    std::iter::once(tokenizer.bos().unwrap()).chain(ids).filter_map(|id| tokenizer.token(id)).collect()
}

#[test]
fn a_long_conversation_is_not_rendered_beyond_what_is_kept() {
    let tokenizer = byte_level(Some(template!("chatml")));
    let messages: Vec<Message> = (0..20_000).map(|i| message(["user", "assistant"][i % 2], "a word or two")).collect();
    let encoded = |messages: &[Message]| {
        let mut encoder = Encoder::new(&tokenizer, Some(1000));
        let template = tokenizer.chat_template().unwrap();
        let chat = Chat::from(messages.to_vec());
        of_conversation(template, &tokenizer, &chat, Masking::Assistant, &mut encoder).unwrap();
        encoder.finish("x".into()).unwrap()
    };
    // Rendered up to each of its answers this takes minutes; a test that hangs has found it.
    let long = encoded(&messages);
    let short = encoded(&messages[..200]);
    assert!(long.cut > 0 && short.cut > 0);
    assert_eq!(long.sample, short.sample);
}
