"""Write expressions.json: what jinja2 makes of many small templates in the sandbox of transformers.

usage: expressions.py
needs: pip install transformers==5.24.0 jinja2==3.1.6 (the environment is made by transformers itself)

An entry is `[template, text]`, or `[template, null, error]` where jinja2 refuses. What prints an address in memory is
left out.
"""
import copy
import datetime
import json
import pathlib

from transformers.utils import chat_template_utils


class Clock(datetime.datetime):
    """2024-07-06 09:05:03, 1720256703 seconds after 1970 (UTC)."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 6, 9, 5, 3)


chat_template_utils.datetime = Clock

NAMES = {
    "s": "Hello wOrld", "u": "héllo wörld 🦀 ß", "e": "", "w": " \t a  b\u00a0c \n", "q": "it's \"x\"\n\\ \u200b\u00e9",
    "i": 7, "n": -3, "z": 0, "big": 123456789012345678901234567890, "big2": 2**64, "f": 2.5, "g": 1e20, "h": -0.0,
    "t": True, "fa": False, "no": None,
    "l": [3, 1, 2], "ls": ["b", "A", "c", "a"], "el": [], "mixed": [1, "a", None, 2.0, True, [1, [2]], {"k": "v"}],
    "d": {"b": 1, "a": {"x": [1, 2]}, "C": None, "items": "mine"}, "ed": {}, "dd": {"b": 2, "A": 1, "c": 3},
    "users": [{"name": "Bob", "age": 3, "on": True}, {"name": "al", "age": 1, "on": False}, {"name": "Cy", "age": 3}],
    "html": "<a href=\"x\">T & 'q'</a>  <!-- c --> b", "lines": "one\n\n  two\r\nthree\n",
}

VALUES = ["s", "u", "e", "w", "q", "i", "n", "z", "big", "big2", "f", "g", "h", "t", "fa", "no", "l", "ls", "el", "mixed",
          "d", "ed", "users", "nope", "(1, 'a')", "(1,)", "()", "range(3)", "d.keys()", "d.values()", "dd.items()", "''|safe",
          "namespace(a=1)", "[nope]"]

UNARY = """
{0} | string; {0} | tojson; {0} | length; {0} | list; {0} | first; {0} | last; {0} | int; {0} | float; {0} | abs; {0} | upper
{0} | lower; {0} | title; {0} | capitalize; {0} | trim; {0} | wordcount; {0} | center(20); {0} | reverse | list; {0} | sort
{0} | unique | list; {0} | sum; {0} | min; {0} | max; {0} | join('-'); {0} | items | list; {0} | dictsort; {0} | pprint
{0} | striptags; {0} | escape; {0} | e | e; {0} | forceescape; {0} | urlencode; {0} | xmlattr; {0} | default('D')
{0} | default('D', true); {0} | d; {0} | round; {0} | filesizeformat; {0} | indent; {0} | truncate(5); {0} | wordwrap(5)
{0} | batch(2) | list; {0} | slice(2) | list; {0} | map('string') | list; {0} | select | list; {0} | reject | list
{0} | count; {0} | replace('l', 'L'); {0} | format; {0} | attr('x'); {0} | tojson(indent=2); {0} | safe; {0} | groupby(0) | list
{0} is defined; {0} is undefined; {0} is none; {0} is string; {0} is number; {0} is integer; {0} is float; {0} is boolean
{0} is true; {0} is false; {0} is mapping; {0} is sequence; {0} is iterable; {0} is callable; {0} is even; {0} is odd
{0} is divisibleby 3; {0} is lower; {0} is upper; {0} is escaped; {0} is filter; {0} is test; {0} is sameas none; {0} is in [1, 7]
{0} == 1; {0} != 1; {0} < 1; {0} >= 1; {0} < 'b'; {0} in 'Hello'; 'a' in {0}; 1 in {0}; {0} in [none, 7]; not {0}; -{0}; +{0}
{0} + 1; {0} + 'a'; {0} + [1]; {0} + (1,); {0} * 2; {0} * 'ab'; {0} - 1; {0} / 2; {0} // 2; {0} % 2; {0} ** 2; {0} ~ 'x' ~ {0}
'%s' % {0}; '%r' % {0}; '%d' % {0}; '%5.1f|' % {0}; '{{}}'.format({0}); '{{!r:>8}}'.format({0}); {0} if {0} else 'E'
{0} and 1; {0} or 1; {0}[0]; {0}[-1]; {0}[1:]; {0}[::-1]; {0}['a']; {0}.a; {0}.items; {0}.items(); {0}.keys() | list
{0}.get('b'); {0}.get('nope', 5); {0}.upper(); {0}.strip(); {0}.split(); {0}.count(1); {0}.index('b'); {0}.copy(); {0}.pop()
{0}.append(1); {0}(); {0}.__class__; {0}['__class__']; {0}.real; {0}.nope; {0}.nope.nope; dict({0}); range({0}) | list
[{0}, {0}]; ({0},); {{'k': {0}}}; {{{0}: 1}}; {0} == {0}; {0} < {0}
"""

EXPRESSIONS = r"""
1 + 2 * 3 ** 2 ** 1; 2 ** 3 ** 2; -2 ** 2; - 1 | abs; -1 | abs; (-1) | abs; 7 // 2; -7 // 2; 7 // -2; -7 % 3; 7 % -3; 7.5 // 2; -7.5 // 2
-7.5 % 2; 7.5 % -2; 1 / 3; 4 / 2; 1 / 0; 1 // 0; 1 % 0; 1.0 / 0; 1.0 // 0; 1.0 % 0; 0.1 + 0.2; 1e16; 1e15; 123456789.123; 1.5e-7; 1e-4
2 ** 0.5; 2 ** -1; (-8) ** 0.5; 0 ** 0; 0 ** -1; 2 ** 64; 2 ** 100 // 3; -(2 ** 70) // 7; -(2 ** 70) % 7; 2 ** 70 / 2 ** 68; 10 ** 400 / 3
9223372036854775807 + 1; -9223372036854775808 - 1; 9223372036854775807 * 9223372036854775807; 10 ** 30 - 1; big + 1; big * big; big / 7
big % 1000; big // 1000; big == big + 0; big > 1; big < 1.5; big | string | length; big | tojson; big ~ ''; big | float; big2 - 1; big2 | abs
1_000; 0x1F; 0o17; 0b101; 1_0.5e1_0; 1.0e3; 00; 1.real; 3 .real; 3.0.is_integer(); (3).bit_length(); big.bit_length(); 7 .conjugate()
True; False; None; true and none; false or ''; true + true; true * 3; true ~ 1; not not 1; true is true; 1 is true; true == 1; 1 == 1.0
true | int; true | tojson; '1' == 1; none == false; [] == false; [1, 2] == [1, 2.0]; (1, 2) == [1, 2]; {'a': 1} == {'a': 1.0}
1 < 2 < 3; 1 < 3 < 2; 1 < 2 > 1; 1 == 1 == 1; 'a' < 'b'; 'a' < 1; 1 < 'a'; none < 1; [1] < [2]; [1, 'a'] < [1, 'b']; [1] < ['a']; (1, 2) < (1, 3)
{} < {}; 'a' in 'abc'; 'a' not in 'abc'; 1 in 'abc'; 'a' in {'a': 1}; 1 in [1.0]; [1] in [[1]]; 'x' in none; 'x' in nope; nope in [1]
[1] in {}; nope == nope; nope == none; nope == ''; nope != 1; nope < 1; nope + 1; nope ~ 1; nope.a; nope['a']; nope(); not nope; -nope
nope | length; nope | list; nope | string; nope | upper; nope | int; nope | join; nope is sequence; d.nope.deep; d.nope ~ 'x'; [nope] ; {'a': nope}
'a' 'b'; "a" 'b' "c"; 'a' ~ 1 ~ 2.0 ~ none ~ true ~ [1, 'a'] ~ {'a': none}; 1.0 ~ ''; 1e20 ~ ''; g ~ h; 'a' * 3; 3 * 'a'; 'a' * -1; 'a' * 2.0; [1] * 2
'a' + 1; 1 + 'a'; [1] + (1,); {} + {}; 'a' - 'b'; none + 1; [1, 2] - [1]; 'abc'[0]; 'abc'[-1]; 'abc'[5]; 'abc'[1:]; 'abc'[:-1]; 'abc'[::2]; 'abc'[::-1]
'abc'[5:]; 'abc'[-10:2]; 'abc'['x']; 'abc'[1.0]; u[1]; u[-1]; u[-3:]; u[::3]; u[2:8:2]; u[100:]; l[0]; l[-1]; l[9]; l[1:]; l[::-1]; l[-2:]; l[:2]; l['a']; l[true]
l[0:2:0]; l['a':]; none[0]; none.a; none['a'] is defined; 5[0]; d['b']; d['a'].x[1]; d.a['x'].0; d.C; d.items; d['items']; d.keys; d[0]; d[[]]; d['nope']
d[none]; {1: 'a'}[1]; {1: 'a'}[1.0]; {1: 'a'}[true]; {'a': 1, 'a': 2}; {1: 1, true: 2, 1.0: 3}; {[]: 1}; {(1, 2): 3}[(1, 2)]; {(1, 2): 3}[1, 2]
(1, 2)[0]; (1, 2) + (3,); (1, 2) * 2; 1, 2; (1); (1,); (); [1, 2,]; [1, [2, [3]]]; {'a': {'b': [1]}}; {}; 1 if true; 1 if false; 1 if false else 2
(1 if false) is defined; 'a' if 0 else 'b' if 0 else 'c'; 1 if 1 if 0 else 2; [1, 2] is sequence; 1 is not none; 1 is not defined; not 1 is none
x is defined and x; nope is defined and nope.a; 3 is divisibleby(3); 3 is eq 3; 3 is eq(3); 3 is gt 2; 3 is lessthan 4; 3 is in [3]; 3 is not in [3]; 'a' is in 'abc'
3 is == 3; 'upper' is filter; 'nope' is filter; 'odd' is test; 2 is number and 3 is odd; 'A' is upper; 'a1' is lower; '1' is lower; 1 is sameas 1; true is sameas true
[] is sameas []; 'a' is sameas 'a'; none is none; nope is none; 1.0 is integer; 1.0 is float; true is number; true is integer; big is integer; 'a' is mapping
d is sequence; d.items() is sequence; range(2) is sequence; none is iterable; 5 is iterable; 'a' is iterable; nope is iterable; s.upper is callable; range is callable; d is callable
s.upper(); s.lower(); s.title(); s.capitalize(); s.swapcase(); u.upper(); u.title(); u.casefold(); 'ǆ'.title(); 'ﬁ'.upper(); "it's".title(); "it's" | title; 'a-b (c) [d' | title
'ΑΣ'.lower(); 'ΑΣ'.capitalize(); 'ß'.capitalize(); 'ß' | capitalize; 'ß' | title; 'İ'.lower() | length; 'straße'.upper(); 'hello world'.title(); '3rd a1b'.title(); 'HELLO'.capitalize()
w.strip(); w.lstrip(); w.rstrip(); w | trim; 'xxaxx'.strip('x'); 'xyaxy'.strip('yx'); 'xxa'.rstrip('a'); 'a'.strip(none); 'a'.strip(1); '\x1c a \x1f'.strip(); '\u200b a'.strip()
'xa'|trim('x'); 'xa'|trim(chars='x'); w.split(); w.split(' '); 'a,b,,c'.split(','); 'a,b,c'.split(',', 1); 'a,b,c'.split(',', maxsplit=1); 'a,b,c'.split(sep=','); 'a b  c d'.split(none, 2)
'a b  c d '.split(maxsplit=2); ''.split(); ''.split(','); 'a'.split(''); 'a,b,c'.rsplit(',', 1); ' a b  c d '.rsplit(none, 2); 'abc'.rsplit(); 'a--b--c'.rsplit('--', 1); 'aaa'.rsplit('aa')
'a=b=c'.partition('='); 'a=b=c'.rpartition('='); 'abc'.partition('='); 'abc'.rpartition('='); 'a'.partition(''); lines.splitlines(); lines.splitlines(true); lines.splitlines(keepends=true); 'a\x0bb\u2028c\x85d'.splitlines()
''.splitlines(); '\n'.splitlines(); 'a\n\nb'.splitlines(); 'abc'.removeprefix('a'); 'abc'.removesuffix('c'); 'abc'.removeprefix('x'); 'abc'.removeprefix(''); 'abcabc'.index('c'); 'abcabc'.rindex('c'); 'abc'.index('x')
'abcabc'.find('c'); 'abcabc'.rfind('c'); 'abc'.find('x'); u.find('w'); u.find('l', 4); 'abcabc'.find('a', 1); 'abcabc'.find('a', -3); 'abc'.find(''); 'abc'.find('', 5); 'abcabc'.count('b'); 'aaaa'.count('aa'); 'abc'.count(''); 'abcabc'.count('a', 1)
'abcabc'.rfind('a', 0, 3); 'abc'.startswith('a'); 'abc'.startswith('b', 1); 'abc'.startswith(('x', 'a')); 'abc'.startswith(['a']); 'abc'.endswith('c'); 'abc'.endswith(('x', 'bc')); 'abc'.endswith('b', 0, 2); 'abc'.startswith(''); 'abc'.startswith('', 4); 'abc'.startswith(1)
'ab'.ljust(5); 'ab'.ljust(5, '.'); 'ab'.rjust(5, '0'); 'ab'.center(5, '*'); 'abc'.center(6, '*'); 'ab'.center(7); 'ab'.center(1); 'ab'.ljust(5, 'xy'); '7'.zfill(3); '-7'.zfill(4); '+7'.zfill(4); 'abc'.zfill(2); '--7'.zfill(5); 'é'.ljust(3) ~ '|'
'a\tb'.expandtabs(); 'a\tb'.expandtabs(4); 'ab\tc\n\td'.expandtabs(3); 'aXbX'.replace('X', '-'); 'aXbX'.replace('X', '-', 1); 'abc'.replace('', '-'); 'abc'.replace('b', ''); 'abc'.replace('b', 1); 'aXbX'|replace('X', 1); 'aaa'|replace('a', 'b', 2); 1231 | replace(1, 'x')
', '.join(['a', 'b']); ', '.join([1]); ''.join('abc'); '-'.join({'a': 1, 'b': 2}); ','.join([]); ','.join(none); ls | join; [1, none, 2.5] | join(', '); users | join(', ', attribute='name'); l | join(1); 'abc' | join('.'); ls | map('upper') | join
'abc'.isalpha(); 'abc1'.isalnum(); '12'.isdigit(); '²'.isdigit(); '²'.isdecimal(); '½'.isnumeric(); '٣'.isdecimal(); 'a b'.isalpha(); ''.isalpha(); 'é'.isalpha(); 'é'.isascii(); ''.isascii(); ' \t'.isspace(); 'Ab Cd'.istitle(); 'AB'.istitle(); 'ab'.islower(); 'aB'.isupper(); 'a1_'.isidentifier(); '1a'.isidentifier(); 'a\n'.isprintable(); '\u200d'.isprintable()
'{} {}'.format(1, 'a'); '{0} {1} {0}'.format(1, 2); '{a} {b!r}'.format(a=1, b='x'); '{:>5}|{:<5}|{:^5}'.format(1, 2, 'c'); '{:05d}'.format(42); '{:+d}'.format(3); '{:,}'.format(1234567); '{:.2f}'.format(3.14159); '{:e}'.format(12345.678); '{:g}'.format(0.00001234); '{:g}'.format(1e20); '{:%}'.format(0.5)
'{:x} {:X} {:o} {:b} {:#x} {:#b}'.format(255, 255, 8, 5, 255, 5); '{:*^9}'.format('ab'); '{:_}'.format(1234567); '{:08.3f}'.format(3.14159); '{:.3}'.format('abcdef'); '{:10.3}|'.format('abcdef'); '{0[a]} {1.real}'.format({'a': 1}, 2); '{0[0]}'.format([7]); '{{}}'.format(1); '{'.format(1); '}'.format(1); '{}'.format(); '{a}'.format(); '{:d}'.format('a'); '{:s}'.format(1)
'{:{}}|'.format('a', 5); '{!s:>4}'.format(none); '{!x}'.format(1); '{} {0}'.format(1); '{0} {}'.format(1); '{0.__class__}'.format(1); '{:,.2f}'.format(1234567.891); '{:010,}'.format(1234567); '{:.0f}'.format(2.5); '{:.3g}'.format(1234.5); '{:.1}'.format(1.25); '{:5}|'.format(true); '{:}'.format(none); '{:5}'.format(none); '{:f}'.format(1); '{: d}'.format(5); '{:c}'.format(65); '{:<05d}'.format(4); '{:=+6d}'.format(4)
'{a}'.format_map({'a': 1}); '%s %s' % (1, 'a'); '%s' % [1]; '%s' % (1,); '%s %s' % (1,); '%s' % (1, 2); '%(a)s %(b)d' % {'a': 1, 'b': 2.7}; '%(a)s' % {}; '%d' % 3.9; '%d' % '3'; '%5d|%-5d|%05d|%+d' % (1, 2, 3, 4); '%x %X %o %#x' % (255, 255, 8, 255); '%e %E' % (12345.678, 0.1); '%g %g %g' % (0.0001, 1e-5, 123456789.0); '%.3s|' % 'abcdef'; '%5s|%-5s|' % ('a', 'b'); '%%'; '%% %s' % 1; '%c%c' % ('a', 66)
'%*d' % (5, 3); '%.*f' % (2, 3.14159); '%r %a' % ('é', 'é'); '%i' % 3; '%u' % 3; '%q' % 1; '%' % 1; 'a' % 1; 'a' % (); 'a' % {}; 'a' % []; '%s' % nope; '%s' % none; '%5.1f' % 2.25; '%.0f' % 0.5; '%f' % 1e300; '%s' % 1e20; '%d' % big; '%x' % -255; '% d' % 3; '%05.1f' % -2.5; '%s' | format('a'); '%s %d' | format('a', 3); '%(x)s' | format(x=1); '%s' | format
'abc'.encode(); 'a'.nope(); 'a'.format; 'a'.upper | string | length > 0; 'abc'.translate({97: 'x'}); 'abcé'.translate({97: 'xy', 98: none, 233: 101}); 'abc'.translate({'a': 'x'}); 'abc'.translate({97: 1.5}); 'abc'.translate({97: 1114112}); 'abc'.translate({97: -1}); 'abc'.translate({97: true, 98: ''}); 'abc'.translate(none); 'abc'.translate(); 'a'.__len__(); 'a'.strip.x; 5.upper(); l.nope(); l.append(4); l.sort(); l.reverse(); l.pop(); l.insert(0, 1); l.extend([1]); l.remove(1); l.clear(); l.index(1); l.index(9); l.count(3); l.copy(); (1, 2, 1).count(1); (1, 2).index(2)
d.update({}); d.pop('b'); d.setdefault('x', 1); d.clear(); d.popitem(); d.copy(); d.get('b'); d.get('x'); d.get('x', 'y'); d.get(); d.get([]); d.keys() | list; d.values() | list; dd.items() | list; dd.items() | length; dd.keys(); dd.values(); dd.items(); dd.keys() | first; dd.keys()[0]; dd.items() | tojson; d.fromkeys(['a'], 1); dict.fromkeys('ab'); dict(a=1, b=2); dict([('a', 1), ['b', 2]]); dict(dd, z=9); dict(1); dict([1]); dict({'a': 1}, {'b': 1})
range(3); range(1, 7, 2); range(3) | list; range(5, 0, -2) | list; range(0); range(3)[1]; range(9)[2:5]; range(9)[::-2]; range(3)[9]; range(3) | length; range(1.0); range(); range(1, 2, 0); range(100000) | length; range(100001); range(10 ** 9); range(3) == range(0, 3); range(3) | tojson; range(3) ~ ''; 2 in range(3); range(3) | last; range(3) | reverse | list; range(2) | join; range(5) | sum
s | length; u | length; w | length; '🦀' | length; 5 | length; none | length; d | length; [1, 2] | count; s | first; s | last; '' | first; [] | first; [] | last is defined; [] | first ~ 'x'; l | min; l | max; ls | min; ls | max; ls | max(case_sensitive=true); [] | min; users | min(attribute='age'); users | max(attribute='name'); [1, 'a'] | min; l | sum; [1.5, 2] | sum; [[1], [2]] | sum(start=[]); users | sum(attribute='age'); ['a'] | sum; l | sum(start=10)
l | sort; l | sort(reverse=true); ls | sort; ls | sort(case_sensitive=true); users | sort(attribute='age') | map(attribute='name') | list; users | sort(attribute='age,name') | map(attribute='name') | list; users | sort(attribute='age', reverse=true) | map(attribute='name') | list; [1, 'a'] | sort; 'bca' | sort; dd | sort; [[2, 1], [1, 2]] | sort; [none, 1] | sort; [true, 0, 2] | sort; users | sort(attribute='nope'); none | sort; dd | dictsort; dd | dictsort(true); dd | dictsort(false, 'value'); dd | dictsort(by='value', reverse=true); dd | dictsort(by='x'); [1] | dictsort
ls + ['B', 'a'] | unique | list; (ls + ['B', 'a']) | unique | list; (ls + ['B', 'a']) | unique(case_sensitive=true) | list; users | unique(attribute='age') | map(attribute='name') | list; [1, 1.0, true, '1'] | unique | list; [[1], [1]] | unique | list; users | groupby('age') | list; users | groupby('age') | map('first') | list; users | groupby('on', default=false) | list; (users | groupby('age'))[0].grouper; (users | groupby('age'))[0].list | length; (users | groupby('age'))[0]; [{'c': 'a'}, {'c': 'A'}] | groupby('c') | list; [{'c': 'a'}, {'c': 'A'}] | groupby('c', case_sensitive=true) | list; users | groupby('nope') | list
users | map(attribute='name') | list; users | map(attribute='on', default='?') | list; users | map(attribute='on') | list; users | map('length') | list; ls | map('upper') | list; ls | map('replace', 'a', 'z') | list; l | map('nope') | list; ls | map; users | map(attribute='name', x=1) | list; [[1, 2], [3, 4]] | map('first') | list; [[1, 2], [3]] | map(attribute=0) | list; [[1, 2], [3]] | map(attribute='1') | list; [{'a': {'b': 1}}] | map(attribute='a.b') | list; users | map('attr', 'name') | list; d | map('upper') | list; none | map('upper') | list; 5 | map('upper') | list
l | select('odd') | list; l | select('gt', 1) | list; l | select('>', 1) | list; l | reject('odd') | list; [0, 1, '', 'a', none] | select | list; [0, 1, ''] | reject | list; users | selectattr('on') | map(attribute='name') | list; users | selectattr('age', 'eq', 3) | list | length; users | selectattr('age', '==', 3) | map(attribute='name') | join(','); users | rejectattr('on') | map(attribute='name') | list; users | rejectattr('age', 'in', [1]) | list | length; users | selectattr('on', 'defined') | list | length; users | selectattr; l | select('nope') | list; users | selectattr('name', 'in', 'Bob') | list; l | select('divisibleby', 3) | list; (l | select('odd')) | length; users | selectattr('name', 'string') | list | length
l | select('odd') | first; l | map('string') | last; l | map('string') | join(','); (l | select('odd')) is iterable; (l | select('odd')) is sequence; (l | map('string')) is defined; l | reverse | list; l | reverse | first; 'abc' | reverse; dd | reverse | list; 5 | reverse; l | batch(2) | list; l | batch(2, 'x') | list; l | slice(2) | list; l | slice(2, 'x') | list; 'abcde' | batch(2) | list; range(7) | slice(3) | list; l | slice(0) | list; l | batch(0) | list; 'abc' | list; d | list; 5 | list; none | list; dd | items | list; [1] | items | list; none | items | list; 'abc' | items
x | default('a'); x | default; none | default('a'); none | default('a', true); '' | d('b', boolean=true); d.nope | default(1); d.nope.x | default(1); 0 | default(1, true); x | default(default_value='q'); 3.7 | int; '3' | int; '3.7' | int; 'x' | int; 'x' | int(5); '0x1f' | int(0, 16); '1f' | int(base=16); '101' | int(base=2); ' 12 ' | int; '1_000' | int; '-5' | int; none | int; [] | int(3); true | int; 'inf' | int; '1e3' | int; '٣' | int; 1e30 | int; '12abc' | int(default=-1); '0b11' | int(0, 0); '1.5' | float; 'x' | float; 'x' | float(1.5); '1e5' | float; 'inf' | float; '-inf' | float; 'nan' | float; ' 2 ' | float; 3 | float; none | float; true | float; '1_0.5' | float; '.5' | float; '5.' | float; 'infinity' | float
2.5 | round; 3.5 | round; -2.5 | round; 2.567 | round(2); 2.675 | round(2); 42.55 | round(1, 'floor'); 42.55 | round(1, 'ceil'); 42 | round; 42 | round(2); 1234 | round(-2); 1250 | round(-2); 1350 | round(-2); 1234.5 | round(-2); 2.5 | round(method='ceil'); 2.5 | round(method='x'); 'a' | round; true | round; 2.1 | round(0, 'floor'); 5 | round(0, 'floor'); 1e20 | round; -5 | abs; -5.5 | abs; 'a' | abs; true | abs; 1 | filesizeformat; 0 | filesizeformat; 999 | filesizeformat; 1000 | filesizeformat; 123456789 | filesizeformat; 1024 | filesizeformat(true); 1e30 | filesizeformat; '13000' | filesizeformat; 'a' | filesizeformat
lines | indent; lines | indent(2); lines | indent(2, true); lines | indent(2, false, true); lines | indent('> '); lines | indent(width=1, first=true, blank=true); 'a\n' | indent; 'a\n\n' | indent; '' | indent; '' | indent(2, true); 'a\nb' | indent(-1); 5 | indent; 'foo bar baz qux' | truncate(9); 'foo bar baz qux' | truncate(9, true); 'foo bar baz qux' | truncate(11); 'foo bar baz qux' | truncate(11, false, '...', 0); 'foo bar baz qux' | truncate(2); 'foo bar' | truncate(5, leeway=0, end='…'); 'abcdefghijkl' | truncate(5); [1, 2, 3] | truncate(1, false, '', 0); html | striptags; 'a &amp; b &lt;' | striptags; '<b' | striptags; 'a<!-- x > y -->b' | striptags; html | escape; html | e; html | forceescape; (html | e) | e; ('<' | safe) + '<'; '<' + ('<' | safe); ('<' | safe) ~ '<'; ('<' | safe) * 2; ('<' | safe) | upper
'hello world foo' | wordwrap(8); 'hello wonderfullongword' | wordwrap(6); 'hello wonderfullongword' | wordwrap(6, false); 'a b\n\nc d' | wordwrap(3); 'a b c' | wordwrap(3, wrapstring='|'); 'a  b   c' | wordwrap(4); "it's a b_c d-e 5" | wordcount; 'नमस्ते दुनिया' | wordcount; '' | wordcount; 'a b/ü?&=' | urlencode; {'a b': 'c/d', 'e': 1} | urlencode; [('a', 1), ('b', 'ü')] | urlencode; 5 | urlencode; {'class': 'x"', 'id': none, 'n': 1} | xmlattr; {'a': 1} | xmlattr(false); {} | xmlattr; {'a b': 1} | xmlattr; {'a': nope} | xmlattr; 'abc' | center(9); 'abc' | center; 5 | center(5); 'abc' | attr('upper'); d | attr('b'); d | attr('items') is callable; 'x' | attr('__class__'); users[0] | attr('name') is defined
d | tojson; mixed | tojson; u | tojson; q | tojson; u | tojson(ensure_ascii=true); d | tojson(indent=2); d | tojson(indent=0); d | tojson(indent='--'); el | tojson(indent=2); ed | tojson(indent=2); dd | tojson(sort_keys=true); d | tojson(separators=(',', ':')); d | tojson(true); d | tojson(false, 4); d | tojson(nope=1); none | tojson; 1.0 | tojson; 1e20 | tojson; h | tojson; ('nan' | float) | tojson; ('inf' | float) | tojson; nope | tojson; [nope] | tojson; (1, 2) | tojson; {1: 2, none: 3, true: 4, 1.5: 5} | tojson; {(1, 2): 3} | tojson; '</script>&' | tojson; namespace(a=1) | tojson; '\x7f\u2028' | tojson; '\x00\x1f' | tojson; mixed | tojson(indent=1); {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true); {1: 1, 'a': 2} | tojson(sort_keys=true)
mixed; d; q; [q]; u; [u]; ['a\'b', "a\"b", 'a\'"b']; '\u00e9\u200d\ufeff\U0001f980\x80'; ['\u00e9\u200d\ufeff\U0001f980\x80\u3000\xa0\ue000']; [1.0, 1e100, 1e-7, 100000.0, 12345678901234567.0]; [true, none]; (1, 'a'); ((1,),); [big]; {'a': (1,)}; dd | pprint; users | pprint; mixed | pprint; ('word ' * 40) | pprint; [('word ' * 30)] | pprint; range(40) | list | pprint; {'k' * 30: 'v' * 60, 'l': ['x' * 50, 'y' * 50]} | pprint; 'a\nb' | pprint; ('abc ' * 10 ~ '\n') * 3 | pprint; 5 | pprint; nope | pprint; {'b': {'z': 1, 'a': 2}} | pprint; (1, 2, 3) | pprint; ('x' * 90,) | pprint
strftime_now('%Y-%m-%d'); strftime_now('%d %b %Y %B %A %a'); strftime_now('%e|%k|%l|%I %p %P'); strftime_now('%-d %-m %-H %-I %-M %-S %-j %_d %_H %0d'); strftime_now('%H:%M:%S %j %U %W %V %G %g %u %w %y %C'); strftime_now('%c|%x|%X|%D|%F|%T|%R|%r|%h'); strftime_now('%%|%n|%t|%f|%s|'); strftime_now('%Q'); strftime_now('%'); strftime_now('é %Y'); strftime_now(''); strftime_now(); strftime_now(1); strftime_now('%z|%Z|'); strftime_now('%^a %^B %#Z %#b'); strftime_now('%5d %05d %_5d %10Y')
namespace(a=1).a; namespace(a=1); namespace({'a': 1}, b=2).b; namespace().x; namespace(a=1)['a']; namespace(_a=1); namespace(1); cycler('a', 'b').next(); cycler('a').current; cycler(); joiner()(); joiner('|')(); raise_exception('no!'); raise_exception(); raise_exception(5); lipsum is defined; s.upper.__name__; ''.__class__.__mro__; self; loop; varargs; caller; caller(); kwargs; true.nope; 1.5.hex is defined; 1.5.is_integer(); 2.5.as_integer_ratio(); 5 .as_integer_ratio(); 0.1.as_integer_ratio()
range.x; dict; d.a.x | join('-') | upper ~ '!'; (d.a.x | join('-')) | length + 1; 'a' | upper | lower | title; 'a' | upper == 'A'; 1 + 'a' | length; 'x' ~ 'a' | upper; not 'a' | upper == 'A'; 2 * 3 | string; 5 is odd and 4 is even or false; 1 in [1] and 2 not in [1]; 'a' in ['a'] == true; [1, 2][0] + [3][0]; {'a': [1, {'b': 2}]}.a[1].b; 'abc'.upper()[1:].lower(); 'a b'.split()[1]; ('a', 'b')[1]; [[1, 2], [3]][0][1]; 'a,b'.split(',') | map('upper') | list | last; s | nope; s is nope; s | nope if false else 'ok'; 1 if s is nope; (s | nope) if false
l.0; d.a.x.0; users.0.name; users[0].name[0]; users[-1]['name']; users[1:] | map(attribute='name') | list; [*l]; f(*l); range(*[1, 3]) | list; dict(**{'a': 1}); dict(**d, z=1) | length; 'a'.replace(*['a', 'b']); '{a}'.format(**{'a': 1}); 'a'.join(*[['x', 'y']]); [x for x in l]; l[0, 1]; l[:]; 'abc'[:2:1]; (l)[0]; -l[0]; -l[0] | abs; - - 1; + 1; -'a'; not; 1 +; 1 ? 2; a b; 'abc; "abc; {{; {'a'}; {1, 2}; [1 2]; (1; 1); f(a=1, 2); f(**a, *b); 1 = 1; a := 1; l[; x.; .x; 1..2; 'a'.'b'; @; $; `; \\; a!; a & b; a && b; a | | b; |upper; is none; if; in; else; true = 1
'\n' | tojson; '\x41\u0042\103\t\\' ; 'a\
b'; '\q\é'; '\N{BULLET}'; '\x4'; '\u12'; "\'\""; '\ud83e\udd80'; '\0' | length; 'tab	in'; "nested 'quotes'"; 'a' "b"; '{{ x }}'; '{% if %}'; '{# c #}'; "%}" ~ '}}'
"""

TEMPLATES = [
    # Loops
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ x }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}", "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in l %}{{ loop }}{% endfor %}",
    "{% for x in l %}{{ loop.nope }}{% endfor %}", "{% for x in [] %}x{% else %}none{% endfor %}", "{% for x in none %}x{% endfor %}", "{% for x in nope %}x{% else %}e{% endfor %}", "{% for x in 5 %}{% endfor %}",
    "{% for x in 'héy' %}{{ x }}.{% endfor %}", "{% for k in d %}{{ k }} {% endfor %}", "{% for k, v in dd.items() %}{{ k }}={{ v }} {% endfor %}", "{% for k, v in dd | items %}{{ k }}={{ v }} {% endfor %}",
    "{% for k, v in d | dictsort %}{{ k }} {% endfor %}", "{% for a, b in [[1, 2], (3, 4)] %}{{ a }}{{ b }} {% endfor %}", "{% for a, b in [[1]] %}{% endfor %}", "{% for a, b in [[1, 2, 3]] %}{% endfor %}",
    "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in ['xy'] %}{{ b }}{% endfor %}", "{% for (a, b) in [[1, 2]] %}{{ b }}{% endfor %}", "{% for x, in [[1]] %}{{ x }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}{{ loop.index }}{{ loop.last }}{% endfor %}", "{% for x in l if x > 9 %}{% else %}e{% endfor %}", "{% for x in l if loop.first %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}e{% endfor %}", "{% break %}", "{% for x in l %}{% break %}{% else %}e{% endfor %}",
    "{% for x in l %}{% for y in l %}{{ loop.index }}{% if y == 1 %}{% break %}{% endif %}{% endfor %}{{ loop.index }};{% endfor %}", "{% for x in l %}{% set y = x %}{% endfor %}{{ y }}", "{% set y = 0 %}{% for x in l %}{% set y = y + x %}{{ y }}{% endfor %}{{ y }}",
    "{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% set x = 9 %}{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% for x in [[1, [2, [3]]]] recursive %}{{ loop.depth }}{% for y in x %}{% if y is sequence %}{{ loop([y]) }}{% else %}{{ y }}{% endif %}{% endfor %}{% endfor %}",
    "{% for x in [[1], [[2]]] recursive %}[{{ loop(x) if x is sequence else x }}]{% endfor %}", "{% for x in l %}{{ loop(x) }}{% endfor %}", "{% for loop in l %}{% endfor %}", "{% for x in l %}{% set loop = 1 %}{{ loop }}{% endfor %}",
    "{% for x in l | select('odd') %}{{ x }}{{ loop.length }}{% endfor %}", "{% set m = l | select('odd') %}{{ m | list }}{{ m | list }}", "{% set m = l | map('string') %}{% for x in m %}{{ x }}{% endfor %}{% for x in m %}{{ x }}{% endfor %}", "{% set m = l | map('string') %}{{ m | first }}{{ m | list }}",
    "{% for x in range(3) -%} {{ x }} {%- endfor %}", "{% for x in l | reverse %}{{ x }}{% endfor %}", "{% for x in l[::-1] %}{{ loop.index0 }}{{ x }}{% endfor %}", "{% for i in range(0, l | length, 2) %}{{ l[i] }}{% endfor %}", "{% for m in users %}{{ m.name }}{% if not loop.last %}, {% endif %}{% endfor %}",
    "{% set ns = namespace(x=0) %}{% for y in l if ns.x < 2 %}{% set ns.x = ns.x + 1 %}{{ y }}{% endfor %}", "{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}", "{% for x in l, %}{{ x }}{% endfor %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}", "{% for x in l if x else [9] %}{{ x }}{% endfor %}", "{% for x in (l if x else [9]) %}{{ x }}{% endfor %}",
    # Setting
    "{% set a = 1 %}{{ a }}", "{% set a, b = 1, 2 %}{{ b }}{{ a }}", "{% set a, b = [1] %}", "{% set (a, b) = 'xy' %}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set a %}x{{ i }}{% endset %}{{ a }}", "{% set a | upper %}x{{ i }}{% endset %}{{ a }}", "{% set a | upper | replace('X', 'y') %}x{% endset %}{{ a }}", "{% set a %}<b>{% endset %}{{ a is string }}{{ a is escaped }}",
    "{% if true %}{% set a = 1 %}{% endif %}{{ a }}", "{% if false %}{% set a = 1 %}{% endif %}{{ a }}", "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{% set ns.b = 3 %}{{ ns.a }}{{ ns.b }}{{ ns }}", "{% set ns = namespace() %}{% for x in l %}{% set ns.s = (ns.s or '') ~ x %}{% endfor %}{{ ns.s }}", "{% set d.b = 2 %}", "{% set nope.b = 2 %}", "{% set ns = namespace() %}{% set ns._a = 1 %}", "{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace(a=0) %}{% set ns.a %}t{% endset %}{{ ns.a }}", "{% set true = 1 %}", "{% set 'a' = 1 %}", "{% set a[0] = 1 %}", "{% set a += 1 %}", "{% set a = 1 if false %}{{ a is defined }}", "{% set a = b = 1 %}", "{% set bos_token = 'x' %}{{ bos_token }}", "{% set range = 5 %}{{ range }}", "{{ a }}{% set a = 1 %}{{ a }}", "{% set ns = namespace(items=[1]) %}{{ ns['items'] }}", "{% set ns = namespace(items=[1]) %}{{ ns.items }}", "{% set s = s ~ '!' %}{{ s }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}", "{% with a, b = [1, 2] %}{{ b }}{% endwith %}",
    # Conditions
    "{% if i > 5 %}a{% elif i > 3 %}b{% else %}c{% endif %}", "{% if z %}a{% elif i %}b{% else %}c{% endif %}", "{% if nope %}a{% else %}b{% endif %}", "{% if not el and not ed and not e %}x{% endif %}", "{% if '0' %}a{% endif %}{% if 0.0 %}b{% endif %}{% if [0] %}c{% endif %}", "{% if 1, 2 %}x{% endif %}", "{% if %}{% endif %}", "{% if 1 %}", "{% endif %}", "{% if 1 %}{% else %}{% else %}{% endif %}", "{% if 1 %}{% endfor %}", "{% nope %}", "{% %}", "{% if s | nope %}{% endif %}", "{% if false %}{{ s | nope }}{% endif %}ok", "{% if true %}{{ s | nope }}{% endif %}", "{% if false %}{% for x in l %}{{ s | nope }}{% endfor %}{% endif %}ok", "{% if (l | select('odd')) %}t{% endif %}", "{% elif %}", "{% if i == 7: %}x{% endif %}",
    # Macros
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=5) }}{{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(c=2) }}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a) %}{{ a is defined }}{{ a.b }}{% endmacro %}{{ m() }}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(1) }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m(x) %}{{ x }}{% if x %}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}", "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}x{{ i }}{% endcall %}", "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) m() %}{{ a + b }}{% endcall %}", "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}", "{% macro m() %}x{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m(caller=none) %}{{ caller }}{% endmacro %}{{ m() }}", "{% macro m() %}{{ m.name }}{{ m.arguments }}{% endmacro %}{{ m() }}{{ m }}", "{% macro m() %}{{ q2 }}{% endmacro %}{% set q2 = 5 %}{{ m() }}", "{% set q2 = 4 %}{% macro m() %}{{ q2 }}{% endmacro %}{% set q2 = 5 %}{{ m() }}", "{% macro m() %}{% set i = 1 %}{{ i }}{% endmacro %}{{ m() }}{{ i }}", "{% for x in l %}{{ m() }}{% endfor %}{% macro m() %}{% endmacro %}", "{% macro m() %}{{ x }}{% endmacro %}{% for x in l %}{{ m() }}{% endfor %}", "{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% macro m() %} a {% endmacro %}[{{ m() | trim }}]{{ m() | length }}", "{% macro m() -%} a {%- endmacro %}[{{ m() }}]", "{% macro m(a, *b) %}{% endmacro %}", "{% if true %}{% macro m() %}x{% endmacro %}{% endif %}{{ m() }}", "{% macro m(n) %}{{ n }}{% endmacro %}{{ l | map('string') | map('upper') | list }}{{ [1] | map('m') | list }}", "{% macro m() %}{% for x in l %}{{ loop.index }}{% endfor %}{% endmacro %}{{ m() }}", "{% macro a() %}A{{ caller() }}{% endmacro %}{% macro b() %}B{% call a() %}C{{ caller() }}{% endcall %}{% endmacro %}{% call b() %}D{% endcall %}", "{% macro m(x='a', y='b') %}{{ x ~ y }}{% endmacro %}{{ m(*['q']) }}{{ m(**{'y': 'z'}) }}", "{% macro m() %}{{ kwargs.get('a') }}{{ varargs | length }}{% endmacro %}{{ m(1, a=2) }}", "{% macro m(x) %}{{ x | default('none') }}{% endmacro %}{{ m(nope) }}{{ m() }}{{ m(none) }}",
    # Blocks, filters, raw
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}aa{% endfilter %}", "{% filter indent(2) %}a\nb\n{% endfilter %}", "{% filter nope %}{% endfilter %}", "{% raw %}{{ x }}{% if %}{% endraw %}", "{% raw %}{% generation %}{% endraw %}", "{{ '{% generation %}' }}{{ \"{% endgeneration %}\" }}", "{%- raw -%} a {%- endraw -%} b", "{% raw %}\na\n{% endraw %}\nb", "{% raw %}", "{% raw +%}a{% endraw %}", "a {% raw %} b {% endraw %} c", "{% generation %}a{{ s }}{% endgeneration %}b", "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}", "{%- generation -%} a {%- endgeneration -%} b", "{% generation %}", "{% generation x %}{% endgeneration %}", "{% block a %}x{{ s }}{% endblock %}", "{% block a %}x{% endblock %}{{ self.a() }}", "{% for x in l %}{% block a %}{{ x }}{% endblock %}{% endfor %}", "{% block a %}{% endblock %}{% block a %}{% endblock %}", "{% block a %}{{ super() }}{% endblock %}", "{% set q3 = 1 %}{% block a %}{{ q3 }}{% endblock a %}", "{% block a-b %}{% endblock %}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% from 'x' import y %}", "{% extends 'x' %}", "{% include 'x' ignore missing %}", "{% if false %}{% include 'x' %}{% endif %}ok", "{% autoescape false %}{{ html }}{% endautoescape %}", "{% print 1, 2 %}", "{% print s %}", "{% do 1 %}", "{% debug %}", "{% trans %}a{% endtrans %}", "{# comment #}a{#- b -#} c", "{# a", "{# {{ x }} #}y", "{#\n multi\n#}\nz", "a\n{# c #}\nb", "a{##}b",
    # White space
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "a\n  {% if true %}\n  b\n  {% endif %}\nc", "a {% if true %} b {% endif %} c", "  {{ i }}\n  {{ i }}  \n", "a\n  {%- if true -%}\n  b\n  {%- endif -%}\n c", "a\n  {%+ if true %}\nb{% endif +%}\nc", "a\n{{- i -}}\nb", "x {{+ i }} y", "{% if true -%}\n\n x{% endif %}", "\t{% if true %}\t{% endif %}\tx", "a\u00a0\u2003{%- if true %}b{% endif %}", "a\n\u3000{% if true %}b{% endif %}", "a\r\nb\r{% if true %}\r\nc{% endif %}\r\nd\r\n", "\n\n{% if true %}\n\nx\n\n{% endif %}\n\n", "x\n\n", "{% set a = 1 %}\n{% set b = 2 %}\n{{ a }}\n", "  {# c #}  \n  x", "a {#- c #} b", "a  {{- '' }} b {{ '' -}}  c", "{{ 'a' }}\n{{ 'b' }}\n\n", "{{ {'a': {'b': 1}}.a.b }}", "{{ {'a':{'b':{}}} }}", "{{ '}}' }}", "{{ \"%}\" }}{% if '%}' %}x{% endif %}", "{ { x } }", "{{ '{{' }}", "a { b % c } d #}", "{{}}", "{{ }}", "{{ i", "{% if", "{{ i }", "}}", "%}", "{{ i }}}}", "{% for x in l %}\n  {{ x }}\n{% endfor %}\n", "{%if true%}a{%endif%}", "{%-if true-%} a {%-endif-%}", "{{-i-}}", "{{ -i }}", "{{- -i }}", "{%\nif true\n%}\nx{% endif %}", "{{ i # c }}", "{% if true %} {% endif %}\n{% if true %}a{% endif %}\n b",
    # Cycling
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}{{ c.pos }}{{ c.items }}", "{% set j = joiner(', ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", "{% set j = joiner() %}{{ j() }}|{{ j() }}{{ j.used }}{{ j.sep }}",
    "{{ raise_exception('Bad ' ~ i) }}", "{% if i != 7 %}{{ raise_exception('x') }}{% endif %}ok", "{% set x = raise_exception('in set') %}", "{{ messages | default('none') }}", "{% for a in users %}{% for k, v in a.items() %}{{ k ~ ':' ~ v }} {% endfor %}{% endfor %}", "{% set x = [] %}{% for y in l %}{% set x = x + [y] %}{% endfor %}{{ x }}", "{% set x = [] %}{% set _ = x.append(1) %}{{ x }}", "{% set x = {} %}{{ x.update({'a': 1}) }}", "{{ users | selectattr('name', 'equalto', 'Bob') | map(attribute='age') | first }}",
    "{% set parts = s.split(' ') %}{{ parts[0] }}{{ parts[-1] }}{{ parts | length }}", "{% set content = '<think>a</think>b' %}{{ content.split('</think>')[-1].lstrip('\\n') }}{{ content.split('</think>')[0].split('<think>')[-1] }}", "{{ ('a' in s) ~ (i is odd) }}", "{% set x = 'a' %}{% if x == 'a' and i > 3 or nope.y %}t{% endif %}", "{{ d['a']['x'][0] ~ d.a.x[1] }}", "{{ d | length > 2 and 'yes' or 'no' }}", "{{ i | string ~ 'x' }}", "{{ 'a' if i is defined else 'b' }}{{ 'c' if j is defined else 'd' }}", "{{ lines.strip().split('\\n') }}",
    # Views as sets
    *["{{ %s %s %s }}" % (a, sign, b) for sign in ["<", "<=", ">", ">=", "==", "!="] for a, b in [
        ("dd.keys()", "dict(dd, z=1).keys()"), ("dict(dd, z=1).keys()", "dd.keys()"), ("dd.keys()", "dd.keys()"),
        ("dd.items()", "dict(dd, z=1).items()"), ("dd.items()", "dict(dd, A=7).items()"), ("d.keys()", "dd.keys()"),
        ("ed.keys()", "ed.items()"), ("ed.keys()", "dd.items()"), ("{('A', 1): 0}.keys()", "dd.items()"),
        ("dd.items()", "{('A', 1): 0}.keys()"), ("dd.values()", "dd.values()"), ("dd.keys()", "dd.values()"),
        ("dd.keys()", "['A', 'b', 'c']"), ("{'a': [1]}.items()", "{'a': [1], 'b': 2}.items()"),
        ("{'a': [1]}.items()", "{1: 2, 3: 4}.keys()"), ("[dd.keys()]", "[dict(dd, z=1).keys()]")]],
    # Text that is marked as safe
    *["{{ %s }}|{{ (%s) is escaped }}" % (form, form) for form in """
('<%s>' | safe) % html; ('%s %s' | safe) % (html, html | safe); ('%r %a' | safe) % (u, q); ('%d %i %5.2f %e %g' | safe) % (i, f, f, g, i)
('%5s|%-9s|%.3s' | safe) % ('<', '<', html); ('%(a)s' | safe) % {'a': html}; ('%s' | safe) % 1; ('%s' | safe) % l; ('a' | safe) % (1,)
('%%' | safe) % (); ('%s' | safe) % (); ('%s' | safe) | format(html); ('%(a)s' | safe) | format(a=html); ('%x' | safe) % i
('%c' | safe) % 'a'; ('%s' | safe) % none; ('<%s>' | safe) % ('<' | safe); ('%(a)s' | safe) % [1]; 'x%s' % ('<' | safe)
(html | safe).capitalize(); (html | safe).title(); (html | safe).swapcase(); (html | safe).casefold(); (html | safe).zfill(60)
(html | safe).replace('a', '<'); (html | safe).replace('a', '<' | safe); (html | safe).replace('a', 1); (html | safe).replace('a', '<', 1)
('a' | safe).center(5, '*'); ('a' | safe).ljust(5, '<'); ('a' | safe).rjust(5, '-'); ('a' | safe).center(4)
(html | safe).split(); (html | safe).split()[0]; (html | safe).split()[0] is escaped; (html | safe).rsplit('<', 1); ('a\\nb' | safe).splitlines()
(html | safe).partition('&')[0]; (html | safe).rpartition('&')[2]; ('<' | safe).join(['<', '>' | safe, 1]); ('-' | safe).join(l)
(html | safe).removeprefix('<a'); (html | safe).removesuffix('b'); (html | safe).find('T'); (html | safe).count('<'); ('7' | safe).isdigit()
('a\\tb' | safe).expandtabs(4); ('ab' | safe).translate({97: 'x'}); (html | safe).index('&'); ('<' | safe).startswith('<'); (html | safe).strip('<b')
""".strip().replace("\n", "; ").split("; ")],
    "{{ ('%s' | safe).format(html) }}", "{{ ('{}' | safe).format(html) }}", "{{ ('{a}' | safe).format(a=html | safe) }}",
]


def expressions():
    for value in VALUES:
        for form in UNARY.replace("\n", ";").split(";"):
            if form.strip():
                yield "{{ " + form.strip().format(value) + " }}"
    text = EXPRESSIONS.replace("\\\nb'", "\0")
    for line in text.splitlines():
        for form in line.split("; "):
            if form.strip():
                yield "{{ " + form.strip().replace("\0", "\\\nb'") + " }}"
    yield from TEMPLATES


def main():
    made, seen = [], set()
    for template in expressions():
        if template in seen:
            continue
        seen.add(template)
        try:
            text = chat_template_utils._cached_compile_jinja_template(template).render(**copy.deepcopy(NAMES))
        except Exception as error:
            made.append([template, None, (str(error).splitlines() or [""])[0] if "raise_exception" in template else ""])
            continue
        if " at 0x" not in text:
            made.append([template, text])
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in made)
    path = pathlib.Path(__file__).parent / "expressions.json"
    names = json.dumps(NAMES, ensure_ascii=True)
    path.write_text(f'{{"now": 1720256703, "names": {names}, "expressions": [\n{lines}\n]}}\n')
    print(len(made), "templates,", sum(len(e) == 2 for e in made), "texts")


if __name__ == "__main__":
    main()
