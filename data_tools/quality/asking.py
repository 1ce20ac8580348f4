"""Whether a text asks for something, states something, or neither can be told; and which language it is in.

Each language has the words that begin a question or a command, those that begin a statement, and a few that give the
language away. Lists like these are never complete: a text that no list knows neither asks nor states.
"""

import re
from dataclasses import dataclass

from ..words import length_in_words, script, words


@dataclass(frozen=True)
class _Language:
    """`asks` is an alternation that begins a clause which asks, `states` the words that begin a statement, `small` the
    words by which the language is known."""

    asks: str
    states: str
    small: str


_LATIN = {
    "en": _Language(
        r"(?:who|what|why|how|where|when|which|whose|whom)(?:'s|'re|'d| \w+)? (?:is|are|was|were|am|do|does|did|can|"
        r"could|would|should|will|shall|has|have|had|might|may|must)\b|(?:who|what|why|how|where|when|which)'s\b|"
        r"(?:how (?:much|many|long|far|often|old|large|big)|why|whose)\b|"
        r"(?:to|in|for|with|by|from|on|at|of|about|under|through) (?:what|which|whom|whose|how)\b|"
        r"(?:is|are|was|were|do|does|did|can|could|would|will|should|has|have|had|may|might|shall|must)(?:n't)? "
        r"(?:the|a|an|it|he|she|they|we|you|i|there|this|that|these|those|any|all|both|his|her|their|its|\w+ \w+)\b|"
        r"(?:please|let's|let us|i(?:'d| would) (?:like|love)|i (?:want|need|wish)|tell (?:me|us)|help me)\b|"
        r"(?:also |then |first |next |now |briefly |shortly |carefully |and |or )*"
        r"(?:add|advise|analy[sz]e|answer|apply|argue|arrange|ask|assess|bring|build|calculate|categori[sz]e|"
        r"characteri[sz]e|"
        r"chart|check|choose|cite|clarify|classify|combine|comment|compare|compile|complete|compose|compute|conclude|"
        r"condense|confirm|connect|consider|construct|contrast|convert|convince|correct|count|create|criticise|"
        r"criticize|"
        r"critique|debug|decide|deduce|defend|define|demonstrate|derive|describe|design|determine|develop|"
        r"devise|"
        r"diagram|differentiate|discuss|distinguish|divide|draft|draw|edit|elaborate|enumerate|estimate|evaluate|"
        r"examine|"
        r"expand|explain|explore|extract|factor|fill|find|finish|fix|follow|form|formulate|generate|give|group|guess|"
        r"highlight|identify|illustrate|imagine|implement|improve|indicate|infer|interpret|invent|investigate|judge|"
        r"justify|label|link|list|locate|look|make|map|mark|match|mention|name|narrate|note|offer|order|organi[sz]e|"
        r"outline|paraphrase|pick|plan|plot|point|portray|predict|prepare|present|pretend|produce|propose|prove|"
        r"provide|"
        r"put|quote|rank|rate|read|recall|recap|recommend|reconstruct|recount|refactor|reflect|relate|rephrase|replace|"
        r"report|respond|restate|retell|review|rewrite|say|select|separate|share|shorten|show|simplify|sketch|solve|"
        r"sort|specify|state|suggest|sum|summari[sz]e|support|tabulate|talk|tell|think|trace|translate|turn|use|verify|"
        r"weigh|work|write)\b",
        "the this that these those it he she they we i his her their its our my there here a an in on at by after "
        "before "
        "during while although though because since as if but and so then some many most all both no however yet also "
        "finally later soon meanwhile once until unless one two three each every another such it's yes",
        "the of and is are was were to what who why how which when where did does with for from by it his her their "
        "this "
        "these an or that between about explain describe list summarize summarise compare identify name write give "
        "he she they we you him them not be been have had will would could can there",
    ),
    "es": _Language(
        r"qu[eé]\b|quién(?:es)?|cómo|cuál(?:es)?|cuándo|cuánt[oa]s?|dónde|por qué|para qué|en qué|a qué|de qué|"
        r"(?:por favor|me gustaría|quiero)\b|(?:y |luego |después |también )*"
        r"(?:explica|explique|compara|compare|resum[ae]|describ[ae]|enumer[ae]|list[ae]|nombr[ae]|identifi(?:ca|que)|"
        r"anali[zc][ae]|discut[ae]|defin[ae]|menciona|mencione|cita|cite|escrib[ae]|redact[ae]|d[ai]|dé|indi(?:ca|que)|"
        r"señal[ae]|justifi(?:ca|que)|traduc[ae]|traduzca|calcul[ae]|ordena|ordene|clasifi(?:ca|que)|relacion[ae]|haz|"
        r"haga|elabor[ae]|argument[ae]|evalú[ae]|contrast[ae]|(?:explic|compar|resum|describ|enumer|list|nombr|"
        r"identific|analiz|discut|"
        r"defin|mencion|cit|escrib|indic|señal|justific|traduc|calcul|orden|clasific|relacion|evalu|contrast)[aei]r)\b",
        "el la los las un una unos unas este esta estos estas ese esa su sus él ella ellos ellas en por para con "
        "cuando "
        "después antes durante aunque porque pero y hay no se al",
        "el los las del y que en una por para con su qué quién cómo cuál es son fue al según entre explica describe "
        "resume "
        "compara enumera cuándo dónde",
    ),
    "fr": _Language(
        r"qui\b|que\b|quoi\b|qu'|quels?\b|quelles?\b|comment\b|pourquoi\b|combien\b|est-ce\b|où\b|en quoi\b|"
        r"(?:à|de|dans|pour|par|en|sur|avec) (?:qui|quoi|quels?|quelles?)\b|(?:s'il vous plaît|je voudrais|j'aimerais)|"
        r"(?:et |puis |ensuite )*(?:\w+ez|fais|dis|explique|compare|résume|décris|énumère|liste|nomme|identifie|"
        r"analyse|"
        r"définis|cite|écris|donne|indique|justifie|traduis|calcule|classe|montre|discute|rédige|relève|expliquer|"
        r"comparer|résumer|décrire|énumérer|lister|nommer|identifier|analyser|définir|citer|écrire|donner|indiquer)\b",
        "le la les l un une des ce cet cette ces il elle ils elles on son sa ses leur leurs en dans après avant "
        "pendant "
        "lorsque quand car mais et c puis alors",
        "le les des du et que en une pour avec dans est sont qui quoi comment pourquoi quel quelle quels quelles ce "
        "cette "
        "au aux selon entre l d qu expliquez décrivez comparez résumez",
    ),
    "de": _Language(
        r"(?:wer|wen|wem|wessen|was|wie|wo|wann|warum|weshalb|wieso|woher|wohin|womit|wodurch|worin|worum|wozu|"
        r"welche[nmrs]?"
        r"|inwiefern|inwieweit)\b|(?:in|mit|aus|von|an|auf|für|durch|unter|zu) (?:wen|wem|welche[nmrs]?)\b|(?:bitte|"
        r"ich "
        r"möchte|ich hätte)\b|(?:und |dann )*(?:(?-i:[A-ZÄÖÜ]\w+n Sie\b)|(?:erkläre?|vergleiche?|beschreibe?|nenne?|"
        r"fasse?|"
        r"liste|zähle?|erläutere?|diskutiere?|analysiere?|definiere?|schreibe?|gib|bestimme?|begründe?|bewerte|ordne|"
        r"übersetze?|berechne|zeige?|stelle?|skizziere?|identifiziere?|finde?|formuliere?|untersuche?|"
        r"charakterisiere?)\b)",
        "der die das den dem ein eine einer dieser diese dieses er sie es wir ihr sein seine seinen ihre in im am "
        "nach vor "
        "während als weil aber und dann dort hier man",
        "der die das den dem des und ist sind wer wie warum ein eine einen im mit von zu für auf nicht welche welcher "
        "welches nach zwischen erkläre beschreibe vergleiche nenne",
    ),
    "pt": _Language(
        r"(?:quem|qual|quais|como|quando|onde|quantos?|quantas?|o que|que|por que|por quê|para que|de que|em que)\b|"
        r"(?:por favor|gostaria|quero)\b|(?:e |depois |também )*(?:expli(?:ca|que)|compar[ae]|resum[ae]|descrev[ae]|"
        r"enumer[ae]|list[ae]|nome(?:ia|ie)|identifi(?:ca|que)|analis[ae]|discut[ae]|defin[ae]|mencion[ae]|cit[ae]|"
        r"escrev[ae]|d[êá]|indi(?:ca|que)|justifi(?:ca|que)|traduz[ae]?|calcul[ae]|orden[ae]|apont[ae]|faça|avalie|"
        r"(?:explic|compar|resum|descrev|enumer|list|nome|identific|analis|discut|defin|mencion|cit|escrev|indic|"
        r"justific|"
        r"traduz|calcul|orden|classific|relacion|avali|contrast)[aei]r)\b",
        "o a os as um uma este esta esse essa ele ela eles elas seu sua em no na nos nas após antes durante quando "
        "porque "
        "mas e há",
        "o os as do da dos das e que em um uma por para com se sua seu qual quem como é são foi no na ao entre "
        "explique "
        "descreva resuma compare",
    ),
    "it": _Language(
        r"(?:chi|che cosa|cosa|come|quando|dove|perché|quale|quali|quanto|quanti|quante|quanta)\b|qual è|dov'è|"
        r"(?:in|a|con|per|da|di|su) (?:chi|che|quale|quali)\b|(?:per favore|vorrei)\b|(?:e |poi )*(?:spiega(?:te)?|"
        r"spieghi|confronta(?:te)?|paragona|riassumi|riassumete|descrivi|descrivete|elenca(?:te)?|nomina|identifica|"
        r"analizza|discuti|definisci|menziona|cita|scrivi|dai|indica|giustifica|traduci|calcola|ordina|illustra|valuta|"
        r"racconta|(?:spieg|confront|paragon|riassum|descriv|elenc|nomin|identific|analizz|discut|defin|menzion|cit|"
        r"scriv|"
        r"indic|giustific|tradur|calcol|ordin|illustr|valut)[aei]re)\b",
        "il lo la i gli le l un una uno questo questa questi queste egli lui lei essi loro suo sua in nel nella dopo "
        "prima "
        "durante quando ma e c",
        "il lo gli di del della dei e che una per con si è sono chi come perché quale nel nella quali tra spiega "
        "descrivi "
        "riassumi confronta",
    ),
}
_RU_ASKS = (
    r"(?:кто|кого|кому|кем|что|чего|чем|чему|как|какой|какая|какое|какие|каким|какую|каков[аы]?|когда|где|куда|откуда|"
    r"почему|зачем|сколько|чей|чья|чьи|верно ли|можно ли|[вонакспоту]{1,2} (?:кого|ком|чем|чего|каком|какой|каких|"
    r"каким))\b|"
    r"(?:пожалуйста|кратко|подробно|своими словами)\b|\w+(?:ите|йте|ьте|ись)\b|"
    r"(?:объясни|опиши|сравни|назови|перечисли|дай|приведи|укажи|расскажи|напиши|найди|переведи|выдели)\b"
)
_ANYWHERE = {  # where words are not set apart, or come in any order
    "zh": (
        r"[谁誰吗嗎呢哪几幾]|什么|什麼|甚麼|为何|為何|怎|如何|多少|多大|多久|多长|是否|何[时時处處人种種以]|为什|"
        r"[请請]|比较|"
        r"比較|总结|總結|概括|概述|归纳|歸納|解释|解釋|说明|說明|描述|分析|列出|列举|列舉|写出|寫出|写一|寫一|讨论|"
        r"討論|评价|評價|"
        r"指出|翻译|翻譯|计算|計算|求出|证明|證明|举例|舉例|简述|簡述|阐述|闡述|谈谈|談談|试述|試述|给出|給出|找出|"
        r"推断|推斷|对比|對比|复述|介绍一下"
    ),
    "ja": (
        r"[誰何]|なぜ|どう|どの|どこ|どれ|どんな|いつ|いくつ|いくら|か[。？?]*$|ください|下さい|なさい|せよ|述べよ|"
        r"しよう$|説明|"
        r"比較|要約|挙げ|教えて|まとめ|列挙|翻訳|論じ|示せ"
    ),
    "ko": (
        r"누[가구]|무엇|무슨|왜|어떻게|어떤|어디|언제|몇|얼마|까[.?]*$|나요|시오|세요|십시오|해 ?줘|하라|비교|요약|"
        r"설명|나열|"
        r"서술|분석|번역|쓰기|논하"
    ),
    "ar": (
        r"(?:^|\s)(?:ما|ماذا|لماذا|كيف|متى|أين|هل|كم|أي|أية|لم|بم|مم|فيم)(?:\s|$)|(?:^|[\s،.])و?(?:اشرح|لخص|لخّص|"
        r"قارن|صف|"
        r"اذكر|حدد|ناقش|حلل|حلّل|عدد|اكتب|وضح|وضّح|فسر|فسّر|بين|بيّن|عرف|عرّف|استخرج|قيم|قيّم|رتب|ترجم|احسب|أعط|"
        r"يرجى)(?:\s|$)"
    ),
}
_SCRIPTS = {"CYRILLIC": "ru", "HANGUL": "ko", "ARABIC": "ar"}
_KANA = re.compile("[\u3040-\u30ff]")
_QUESTION = re.compile(r"[?？؟](?=[\s*_)\]）」』”’\"'»]*(?:$|\n))|[?？؟](?=[\s*_)\]）]+\S)|¿|[？؟](?=\w)")
_CLAUSE = r"(?:^|(?<=[.!?;:,…\n\"“«(—–]))[\s\"“«(*_¡-]*"
_ASKS = {
    name: re.compile(_CLAUSE + f"(?:{asks})", re.IGNORECASE | re.MULTILINE)
    for name, asks in {**{name: language.asks for name, language in _LATIN.items()}, "ru": _RU_ASKS}.items()
} | {name: re.compile(markers, re.MULTILINE) for name, markers in _ANYWHERE.items()}
_SMALL = {name: frozenset(language.small.split()) for name, language in _LATIN.items()}
_STATES = {name: frozenset(language.states.split()) for name, language in _LATIN.items()}
_ENDS_FLAT = re.compile(r"[.。।][*_\"'”’»」』)）]*$")
_ENDS = re.compile(r"[.。।!！?？؟…:：;][*_)\"'”’»」』）]*$")
_LONGEST_TITLE = 8  # words
_WH = re.compile(r"\b(?:who|what|why|how|which|when|where|whether)\b", re.IGNORECASE)
# "Anna repaired …", "Captain Bell was …"
_NAMED = re.compile(
    r"[^\W\d_a-z]\w*(?: \w+)? (?:is|was|were|are|had|has|have|will|would|could|can|went|left|said|wrote|came|made|"
    r"took|gave|"
    r"became|began|saw|found|got|told|knew|kept|lost|sold|bought|built|\w{2,}ed)\b"
)


def language(text: str) -> str:
    """Such as "en" or "zh"; "" where no language has more of its small words in the text than any other."""
    writing = script(text)
    if writing == "CJK":
        return "ja" if _KANA.search(text) else "zh"
    if writing != "LATIN":
        return _SCRIPTS.get(writing, "")
    found = words(text)
    counts = {name: sum(word in small for word in found) for name, small in _SMALL.items()}
    if "¿" in text or "¡" in text:
        counts["es"] += 2
    best = max(counts.values())
    leading = [name for name, count in counts.items() if count == best > 0]
    return leading[0] if len(leading) == 1 else ""


def asks(text: str) -> bool:
    """Whether some clause of a text is a question or a command."""
    if _QUESTION.search(text):
        return True
    name = language(text)
    plain = text.replace("’", "'")
    if name:
        return _ASKS[name].search(plain) is not None
    return any(_ASKS[name].search(plain) for name in _LATIN) if script(text) == "LATIN" else False


def states(text: str) -> bool:
    """Whether a text that does not ask is a statement, as far as its language shows that."""
    name = language(text)
    if not name or asks(text):
        return False
    if name not in _LATIN:
        return _ENDS_FLAT.search(text) is not None
    first = next(iter(words(text)), "")
    if first in _STATES[name]:
        return True
    return name == "en" and _NAMED.match(text) is not None and not _WH.search(text)


def is_title(text: str) -> bool:
    """Whether a text that does not ask is a few words without an end, such as the heading of a topic."""
    return _ENDS.search(text) is None and length_in_words(text) <= _LONGEST_TITLE and not asks(text)
