//! Statements and expressions. Chains of operators are flat, so that only brackets nest.

use std::sync::Arc;

use num_bigint::BigInt;

use crate::filters::Filter;
use crate::number::Operator;
use crate::tests::Test;
use crate::value::Str;

/// A name's number in the template's list of names.
pub(crate) type Symbol = usize;

/// A parsed template.
pub(crate) struct Program {
    pub(crate) body: Vec<Statement>,
    pub(crate) names: Vec<Str>,
    pub(crate) blocks: Vec<(Str, Arc<Vec<Statement>>)>,
    pub(crate) marks_generation: bool,
}

pub(crate) struct Statement {
    pub(crate) line: usize,
    pub(crate) kind: StatementKind,
}

pub(crate) enum StatementKind {
    Text(String),
    Print(Expression),
    If {
        branches: Vec<(Expression, Vec<Statement>)>,
        otherwise: Vec<Statement>,
    },
    For(Arc<For>),
    Set {
        target: Target,
        value: Expression,
    },
    SetBlock {
        target: Target,
        filters: Vec<Link>,
        body: Vec<Statement>,
    },
    With {
        targets: Vec<(Target, Expression)>,
        body: Vec<Statement>,
    },
    Macro(Arc<Macro>),
    Call {
        caller: Arc<Macro>,
        call: Expression,
    },
    Filter {
        filters: Vec<Link>,
        body: Vec<Statement>,
    },
    Generation(Vec<Statement>),
    Block(usize),
    /// What would load another template.
    Load,
    Break,
    Continue,
}

pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) iter: Expression,
    pub(crate) test: Option<Expression>,
    pub(crate) recursive: bool,
    /// The name `loop`, if the body looks at it.
    pub(crate) loop_symbol: Option<Symbol>,
    pub(crate) body: Vec<Statement>,
    pub(crate) otherwise: Vec<Statement>,
}

pub(crate) struct Macro {
    pub(crate) name: Option<(Symbol, Str)>,
    pub(crate) arguments: Vec<(Symbol, Str)>,
    /// Of the last arguments.
    pub(crate) defaults: Vec<Expression>,
    pub(crate) body: Vec<Statement>,
    /// The special names that the body looks at.
    pub(crate) caller: Option<Symbol>,
    pub(crate) kwargs: Option<Symbol>,
    pub(crate) varargs: Option<Symbol>,
}

pub(crate) enum Target {
    Name(Symbol),
    Attribute(Symbol, Str),
    Tuple(Vec<Target>),
}

pub(crate) struct Expression {
    pub(crate) line: usize,
    pub(crate) kind: ExpressionKind,
}

pub(crate) enum ExpressionKind {
    Constant(Literal),
    Name(Symbol),
    Tuple(Vec<Expression>),
    List(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    Chain(Box<Expression>, Vec<Link>),
    Sign { minus: bool, of: Box<Expression> },
    Not(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    Arithmetic(Box<Expression>, Vec<(Operator, Expression)>),
    Concat(Vec<Expression>),
    If { test: Box<Expression>, then: Box<Expression>, otherwise: Option<Box<Expression>> },
}

pub(crate) enum Literal {
    None,
    Bool(bool),
    Int(i64),
    Big(BigInt),
    Float(f64),
    Str(Str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}

/// What follows an expression.
pub(crate) struct Link {
    pub(crate) line: usize,
    pub(crate) kind: LinkKind,
}

pub(crate) enum LinkKind {
    Attribute(Str),
    Item(Expression),
    Slice(Box<[Option<Expression>; 3]>),
    Call(Arguments),
    Filter(Named<Filter>, Arguments),
    Test { test: Named<Test>, negated: bool, arguments: Arguments },
}

/// A filter or test; an unknown one fails when it is reached.
pub(crate) enum Named<T> {
    Known(T),
    Unknown(String),
}

#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Expression>,
    pub(crate) named: Vec<(Str, Expression)>,
    pub(crate) unpacked: Option<Box<Expression>>,
    pub(crate) unpacked_named: Option<Box<Expression>>,
}
